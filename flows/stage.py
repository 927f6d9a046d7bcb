"""How every flow runs: under Prefect where its server answers, else directly. Change here to run them otherwise.

A server that dies stops nothing: what has begun is never begun again, and what has finished stands.
"""

import argparse
import errno
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from flows import begin_work, server
from pipeline.errors import InputError

PARENT = "FLOWS_PARENT"  # the flow run that started this process
RETRY_DELAYS_S = [1.0, 5.0]

P = ParamSpec("P")
T = TypeVar("T")


def run(
    function: Callable[..., object],
    arguments: Mapping[str, Any] | None = None,
    *,
    tracked: bool = True,
    failed: int = 1,
) -> None:
    """Run a flow as the one job of this program: exit with the number that it returns, or with `failed` where it
    raises, and one line where an input is wrong.

    `arguments`: what the command line said; without them, it may say nothing but `--help`. `tracked`: whether it is a
    stage of the pipeline, whose outputs go to MLflow.
    """
    if arguments is None:
        _parser(function).parse_args()
    name, work = function.__name__, _Work(function, arguments or {})
    try:
        url = _run(work, tracked=tracked)
        code = work.result or 0
    except Exception as error:
        url = os.environ.get("PREFECT_API_URL")
        code = failed
        if isinstance(error, InputError):
            sys.stderr.write(f"{name}: {error}\n")
        elif _disk_is_full(error):
            said = f"expected room for the outputs, the disk is full ({error}); free some, and run it again"
            sys.stderr.write(f"{name}: {said}\n")
        else:
            traceback.print_exc()
    if url and not server.answers(url):  # Prefect would try for minutes to reach it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def run_stage(function: Callable[..., object]) -> None:
    """Run a stage as the one job of this program; with a folder as its argument, into that one instead, untracked: for
    an inspection, which makes again what is recorded."""
    parser = _parser(function)
    parser.add_argument("folder", nargs="?", help="write there instead, and track nothing")
    folder = {name: given for name, given in vars(parser.parse_args()).items() if given}
    run(function, folder, tracked=not folder)


def _parser(function: Callable[..., object]) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"python -m flows.{function.__name__}", description=function.__doc__)


def io(function: Callable[P, T]) -> Callable[P, T]:
    """Input or output, tried three times and seen in Prefect's interface; outside a flow run, the function itself."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        work = _Work(partial(function, *args), kwargs, name=function.__name__)
        if _in_flow_run():
            _guarded(partial(_as_task, work), work)
        else:
            work()
        result: T = work.result
        return result

    return call


def say(message: str) -> None:
    """A line for the person at the terminal, and in a flow run for its log."""
    sys.stdout.write(message + "\n")
    sys.stdout.flush()
    if _in_flow_run():
        from prefect.logging import get_run_logger

        get_run_logger().info(message)


def artifact(key: str, markdown: str) -> None:
    """Show a page in Prefect's interface; outside a flow run, nothing. `key`: lower case, digits and dashes."""
    if _in_flow_run() and server.answers(os.environ.get("PREFECT_API_URL", "")):
        from prefect.artifacts import create_markdown_artifact

        with suppress(Exception):
            create_markdown_artifact(markdown, key=key)


def child_environment() -> dict[str, str]:
    """The environment for a process whose flows belong to this flow run."""
    if not _in_flow_run():
        return dict(os.environ)
    from prefect.runtime import flow_run

    return {**os.environ, PARENT: str(flow_run.id)}


class _Work:
    """A call that remembers whether it began, and what came of it."""

    def __init__(self, function: Callable[..., object], arguments: Mapping[str, Any], name: str = "") -> None:
        self.function, self.arguments = function, arguments
        self.name, self.description = name or function.__name__, function.__doc__
        self.begun = False
        self.error: BaseException | None = None
        self.result: Any = None

    def __call__(self) -> None:
        """Do the work; the result stays here, away from Prefect's storage."""
        self.begun, self.error = True, None
        begin_work()
        try:
            self.result = self.function(**self.arguments)
        except BaseException as error:
            self.error = error
            raise


def _run(work: _Work, *, tracked: bool) -> str | None:
    from flows import tracking

    if tracked:
        tracking.check_server()
    start = time.perf_counter()
    if url := _server(work.name):
        os.environ["PREFECT_API_URL"] = url
        _guarded(partial(_as_flow, work), work)
    else:
        work()
    if tracked:
        try:
            tracking.log_stage(work.name, time.perf_counter() - start)
        except Exception as error:
            said = f"{work.name} has finished, but MLflow did not take it ({error})"
            say(f"{said}; `python -m flows.tracking` logs what is missing")
    return url


def _guarded(engine: Callable[[], object], work: _Work) -> None:
    """Let Prefect do the work, and where Prefect itself fails, see that it is done, once."""
    try:
        engine()
    except Exception as error:
        if work.error is not None:
            raise work.error from work.error.__cause__
        say(f"Prefect failed ({type(error).__name__}): {work.name} goes on without it")
        if not work.begun:
            work()


def _server(name: str) -> str | None:
    """The Prefect API for this process, None for no Prefect."""
    if url := os.environ.get("PREFECT_API_URL"):
        if server.answers(url):
            return url
        say(f"Prefect does not answer at {url}: running {name} directly")
    elif url := server.recorded():
        return url
    else:
        say(f"no Prefect server: running {name} directly; `make ui` starts one")
    return None


def _as_flow(work: _Work) -> None:
    from prefect import Flow  # 0.8 s: where no server answers, nothing imports it
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    @wraps(work.function)
    def flow(**_: object) -> None:
        try:
            work()
        finally:
            if not server.answers(os.environ["PREFECT_API_URL"]):  # then waiting for it helps nobody
                settings.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))

    logging.raiseExceptions = False  # a log line that its server did not take is no news
    made = Flow(flow, name=work.name, flow_run_name=work.name, description=work.description, validate_parameters=False)
    with ExitStack() as settings:
        settings.enter_context(temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}))  # it ends 1 s late
        settings.enter_context(_parent(made))
        made(**work.arguments)


def _as_task(work: _Work) -> None:
    from prefect import Task
    from prefect.cache_policies import NO_CACHE

    def worth_a_retry(*_: object) -> bool:
        return not isinstance(work.error, InputError)

    Task(
        work.__call__,
        name=work.name,
        retries=len(RETRY_DELAYS_S),
        retry_delay_seconds=RETRY_DELAYS_S,
        retry_condition_fn=worth_a_retry,
        cache_policy=NO_CACHE,
    )()


@contextmanager
def _parent(flow: Any) -> Iterator[None]:
    """Inside the flow run that started this process, if one did: what runs here becomes its subflow."""
    with ExitStack() as stack:
        if parent := os.environ.get(PARENT):
            with suppress(Exception):  # a lost link costs a line in a picture, no more
                stack.enter_context(_inside(parent, flow))
        yield


def _inside(parent: str, flow: Any) -> AbstractContextManager[None]:
    from prefect import get_client
    from prefect.context import hydrated_context
    from prefect.results import get_result_store

    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(parent))
    context = {"flow": flow, "flow_run": run, "parameters": {}, "result_store": get_result_store()}
    return hydrated_context({"flow_run_context": context})


def _in_flow_run() -> bool:
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return context is not None and not context.detached


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
