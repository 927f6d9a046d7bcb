"""A release that answers: requests in, scores out, by its model or by what stands in for it, each one logged. Change
here to do more with a score.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, Raw, Struct, UnsetType

from pipeline.journal import Journal
from pipeline.scoring import Columns
from serving.batcher import Batcher
from serving.breaker import Breaker, Reason, check_scores
from serving.protocols import Asked, Call, Form, Invocations, Predict, Scored, Source, example, labels
from serving.release import Release
from serving.settings import Settings
from serving.telemetry import Log, Metrics, failed
from serving.v2 import Infer

if TYPE_CHECKING:
    from serving.challenger import Shadow

INLINE_ROWS = 200  # take less time than a thread takes to start on them


class Entry(Struct):
    """What the prediction log has of a request; `pipeline.journal` reads it."""

    time: datetime
    request_id: str
    model: str
    source: str
    scores: Sequence[Any]
    rows: Sequence[Any] | Raw | UnsetType = UNSET
    columns: Mapping[str, Any] | Raw | UnsetType = UNSET


class Request(Struct):
    """What a client asked, and under which id; `alone` where no other was under way when it came; `inputs` as the
    prediction log has them, once that is made."""

    id: str
    asked: Asked
    alone: bool = False
    inputs: Raw | None = None


class Desk(NamedTuple):
    """What every release of a service shares."""

    settings: Settings
    metrics: Metrics
    log: Log
    journal: Journal


class Live:
    """A release that answers. As a challenger it has no baseline: the champion answers what it cannot."""

    def __init__(self, release: Release, desk: Desk, *, challenger: bool = False) -> None:
        settings = desk.settings
        self.release = release
        infer = Infer(release, settings.max_rows)
        self.tensors = infer.metadata()
        self.forms: dict[str, Form] = {
            "predict": Predict(release, settings.max_rows),
            "infer": infer,
            "invocations": Invocations(release, settings.max_rows),
        }
        self.breaker = Breaker(
            window=settings.breaker_window, rate=settings.breaker_rate, cooldown_s=settings.breaker_cooldown_s
        )
        self.shadow: Shadow | None = None
        self._desk = desk
        self._source: Source = "challenger" if challenger else "model"
        self._fallback = None if challenger else release.fallback
        self._contract = release.contract
        self._onnx = release.contract["runtime"] == "onnx"
        workers = 2 if self._onnx else 1  # onnxruntime works beside this thread, scikit-learn hardly
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=self._source)
        self._free = asyncio.Semaphore(workers)
        # Whether a few rows take less time than a thread takes to start; where they were slow, others are answered
        # while a thread is at them.
        self._inline = self._onnx
        self._batcher = Batcher(self._answer)
        self._encode = msgspec.json.Encoder().encode
        self._warm_up()

    async def score(self, request: Request) -> Scored | None:
        """The scores of a request's rows; None where a challenger has none."""
        if request.asked.size <= INLINE_ROWS and not (request.alone and self._inline):
            return await self._batcher.ask(request)
        return (await self._answer([request]))[0]

    async def _answer(self, requests: Sequence[Request]) -> Sequence[Scored | None]:
        columns = self._columns([request.asked for request in requests])
        scores = await self._by_model(requests, columns)
        if scores is not None:
            if self.shadow is not None:
                self.shadow.offer(columns, scores)
            return self._told(requests, columns, scores, self._source)
        if len(requests) > 1 and self.breaker.state == "closed":  # one of them is at fault
            return [(await self._answer([request]))[0] for request in requests]
        if self._fallback is None:
            return [None] * len(requests)
        return self._told(requests, columns, self._fallback.score(columns), "baseline")

    async def _by_model(self, requests: Sequence[Request], columns: Columns) -> np.ndarray | None:
        """The model's scores [n, k]; None where it may not answer, or where what it answers are no scores."""
        leave = self.breaker.allows()
        if leave is None:
            return None
        try:
            scores, reason = await self._called(requests, columns)
        except BaseException:
            self.breaker.abandoned(leave)
            raise
        if reason is None:
            self.breaker.succeeded(leave)
        elif len(requests) == 1 or reason == "slow" or self.breaker.state != "closed":
            self.breaker.failed(leave, reason)
            self._desk.metrics.model_failed(reason)
        else:
            self.breaker.abandoned(leave)  # each will be asked by itself, which tells whose fault it was
        return scores

    async def _called(self, requests: Sequence[Request], columns: Columns) -> tuple[np.ndarray | None, Reason | None]:
        """Scores that may be given to clients, and what was wrong with the call."""
        begun = perf_counter()
        rows = len(next(iter(columns.values())))
        try:
            if self._inline and rows <= INLINE_ROWS:
                scores = self.release.scorer.score(columns)
                self._inline = in_time = perf_counter() - begun <= self._desk.settings.model_budget_s
            else:
                parts = _halves(columns, rows) if self._onnx and rows > INLINE_ROWS else [columns]
                scores = await self._in_threads(requests, parts)
                self._inline, in_time = self._onnx, True
        except TimeoutError:
            self._inline = False
            return None, "slow"
        except Exception as error:
            self._desk.log.line("model failed", "error", model=self.release.hash[:12], **failed(error))
            return None, "raised"
        if reason := check_scores(scores, self._contract):
            return None, reason
        return scores, None if in_time else "slow"

    async def _in_threads(self, requests: Sequence[Request], parts: Sequence[Columns]) -> np.ndarray:
        """The model's scores, and beside them the rows of the log; TimeoutError once that takes too long."""
        loop, unwritten, on_their_way = asyncio.get_running_loop(), [*requests], [*range(len(parts))]

        def one_is_there() -> None:
            on_their_way.pop()
            if not on_their_way:  # sooner, this would keep Python's lock from those threads
                for request in unwritten:
                    request.inputs = Raw(self._encode(request.asked.entry()))

        async def score(part: Columns) -> np.ndarray:
            async with self._free:  # waiting for others is no fault of the model
                tell = partial(loop.call_soon_threadsafe, one_is_there)
                work = loop.run_in_executor(self._threads, self.release.scorer.score, part, tell)
                return await asyncio.wait_for(work, self._desk.settings.model_budget_s)

        try:
            return np.concatenate(await asyncio.gather(*map(score, parts)))
        finally:
            unwritten.clear()  # a thread that hangs, or comes late, keeps no rows and makes none

    def _told(
        self, requests: Sequence[Request], columns: Columns, scores: np.ndarray, source: Source
    ) -> list[Scored | None]:
        """Count and log what was scored, and cut it into the answers."""
        threshold = self.release.fallback.threshold if source == "baseline" else self._contract["threshold"]
        values = scores.tolist() if scores.shape[1] > 1 else scores[:, 0].tolist()
        decided = labels(scores, self._contract, threshold)
        unseen = self.release.inputs.unseen(columns)
        # Behind the answer, where a row is alone.
        asyncio.get_running_loop().call_soon(self._desk.metrics.scored, scores, unseen, source, len(requests))
        time, start = datetime.now(UTC), 0
        answers: list[Scored | None] = []
        entries = []
        for request in requests:
            asked = request.asked
            part = slice(start, start + asked.size)
            start = part.stop
            named = unseen and [(row - part.start, column) for row, column in unseen if part.start <= row < part.stop]
            answers.append(Scored(scores[part], values[part], decided and decided[part], named, source))
            entry = Entry(time, request.id, self.release.hash, source, values[part])
            if asked.columns is None:
                entry.rows = request.inputs or asked.rows
            else:
                entry.columns = request.inputs or asked.entry()
            entries.append(self._encode(entry))
        self._desk.journal.append(entries)  # before any of the answers goes out
        return answers

    def _columns(self, requests: Sequence[Asked]) -> Columns:
        """All rows of several requests, one after the other."""
        rows = [row for asked in requests for row in asked.rows]
        if len(rows) == sum(asked.size for asked in requests):  # all came as rows: one array of all is made soonest
            return self.release.inputs.arrays(rows)
        parts = [
            self.release.inputs.arrays(asked.rows) if asked.columns is None else asked.columns for asked in requests
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _warm_up(self) -> None:
        """Answer a request for the example once, so that no client's is the first."""
        form, contract = self.forms["predict"], self.release.contract
        call = Call("warm-up", {}, example(self.release))
        asked = form.read(call)
        scores = self.release.scorer.score(self._columns([asked]))
        decided = labels(scores, contract, contract["threshold"])
        form.write(call, asked, Scored(scores, scores.tolist(), decided, [], self._source))


def _halves(columns: Columns, rows: int) -> list[Columns]:
    """The same rows as two parts, for two threads."""
    halves = slice(rows // 2), slice(rows // 2, None)
    return [{name: column[part] for name, column in columns.items()} for part in halves]
