"""What answers: the champion, a challenger beside it, the last good bundle where a new one is refused. Change here to
choose otherwise.
"""

import asyncio
import gc
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec

from pipeline.errors import InputError
from pipeline.journal import FEEDBACK, PREDICTIONS, Journal
from pipeline.scoring import Features
from serving import protocols
from serving.access import Access
from serving.challenger import ChallengerMetrics, Shadow, in_canary
from serving.feedback import Feedback
from serving.live import Desk, Live, Request
from serving.problems import Answer, Problem, problem_of
from serving.protocols import Call
from serving.release import Release, keep, load, load_kept
from serving.rows import RowError
from serving.settings import Settings
from serving.telemetry import Log, Metrics, failed

_CANARY_KEY = b"x-canary-key"


class Service:
    """The releases that answer, and what they share. `refused` says why the bundle that was asked for is not among
    them."""

    def __init__(self, settings: Settings, features: Features, log: Log) -> None:
        self.settings, self.log = settings, log
        self.access = _access(settings)
        self._features = features
        self._kept = settings.data_dir / "last-good"
        release, self.refused = self._first()
        self.metrics = Metrics(release, log)
        self.journal = Journal(settings.data_dir / "log", PREDICTIONS)
        self.outcomes = Journal(settings.data_dir / "log", FEEDBACK)
        self._desk = Desk(settings, self.metrics, log, self.journal)
        self._compared = ChallengerMetrics(self.metrics.registry, spread=_spread(release))
        self.killed: tuple[str, str] | None = ("SERVING_KILLED is set", "the settings") if settings.killed else None
        self.challenger = self._challenger()
        self.live = self._live(release)
        self._reloading = asyncio.Lock()
        self._tell_state()

    def handler(self, form: str, *, canary: bool = True) -> Callable[[Call], Coroutine[Any, Any, tuple[Answer, int]]]:
        """What answers a request in that form, with the number of rows scored; raises Problem or RowError."""

        async def handle(call: Call) -> tuple[Answer, int]:
            live = self.live  # stays this request's, whatever is loaded meanwhile
            protocols.check_media_type(live.forms[form], call.headers)
            if canary and self.challenger and not self.killed and self._in_canary(call):
                with suppress(RowError):  # what it does not take, the champion may
                    if answer := await _answer(self.challenger, form, call):
                        return answer
            answer = await _answer(live, form, call)
            if answer is None:
                raise Problem(500, "the model does not answer, and neither does the baseline")
            return answer

        return handle

    async def feedback(self, call: Call) -> tuple[Answer, int]:
        """Keep outcomes; whoever gets no 200 sends them again."""
        form = self.feedback_form
        entries = form.entries(form.read(call.body), call.holder, datetime.now(UTC))
        if not self.outcomes.append(entries):
            raise Problem(503, "the outcomes cannot be kept now; send them again", headers=((b"retry-after", b"10"),))
        return Answer(200, msgspec.json.encode({"kept": len(entries)})), 0

    async def reload(self, call: Call) -> tuple[Answer, int]:
        """Serve what the bundle's folder now holds, once it is verified; else what is served stays."""
        async with self._reloading:
            try:
                release = await asyncio.to_thread(load, self.settings, self._features)
                live = self._live(release)
            except InputError as error:
                self.metrics.reloads.labels("refused").inc()
                self.log.line("bundle refused", "error", reason=str(error))
                raise Problem(409, f"{error}; {self.live.release.hash[:12]} is served as before") from None
            self.metrics.serves(release)
            former, self.live, self.refused = self.live, live, None
            self.metrics.reloads.labels("done").inc()
            self.log.line("reloaded", model=release.hash, before=former.release.hash, by=call.holder)
            if former.shadow:
                await asyncio.to_thread(former.shadow.stop)
            await asyncio.to_thread(self.keep)
        gc.collect()  # the former has many parts, which refer to each other
        return Answer(200, msgspec.json.encode({"model": release.hash, "before": former.release.hash})), 0

    async def reload_by_signal(self) -> None:
        """The same, where nobody waits for an answer."""
        with suppress(Problem):
            await self.reload(Call("signal", {}, holder="SIGHUP"))

    async def kill(self, call: Call) -> tuple[Answer, int]:
        """Let the baseline answer for the model, until it is revived."""
        because = protocols.converted(call.body, Because, "kill").because
        self.killed = because, call.holder
        self.live.breaker.kill(*self.killed)
        self.log.line("killed", "warning", because=because, by=call.holder)
        return Answer(200, msgspec.json.encode({"answers": "baseline"})), 0

    async def revive(self, call: Call) -> tuple[Answer, int]:
        """Let the model answer again."""
        self.killed = None
        self.live.breaker.revive(call.holder)
        self.log.line("revived", by=call.holder)
        return Answer(200, msgspec.json.encode({"answers": "model"})), 0

    def refuse(self, error: Exception, call: Call) -> Answer:
        """The problem that an exception is to the client; what nobody foresaw is logged."""
        problem = problem_of(error)
        if problem.status == 500:
            self.log.line("failed", "error", request_id=call.id, **failed(error))
        self.metrics.refused(problem.reason)
        return problem.answer(call.id)

    @property
    def feedback_form(self) -> Feedback:
        """What outcomes of the release that is served look like."""
        return Feedback(self.live.release.contract)

    def details(self) -> list[str]:
        """What an operator should know of a service that answers all the same."""
        told = [
            self.refused and f"the last good bundle is served: {self.refused}",
            self.live.breaker.state != "closed" and self.live.breaker.detail,
            self.challenger and self.challenger.breaker.state != "closed" and "the challenger does not answer",
            self.journal.failing,
            self.outcomes.failing,
        ]
        return [text for text in told if text]

    def keep(self) -> None:
        """Keep the release that is served as the last good one; where that cannot be, say so."""
        if self.refused:
            return
        try:
            keep(self.live.release, self._kept)
        except OSError as error:
            self.log.line("last good bundle not kept", "warning", reason=str(error))

    async def look_after(self) -> None:
        """Each second: keys that were rotated, and log entries that wait."""
        while True:
            await asyncio.sleep(1)
            try:
                if wrong := self.access.refresh():
                    self.log.line("keys stay as they were", "error", reason=wrong)
                self.journal.retry()
                self.outcomes.retry()
            except Exception as error:  # the next second may do better
                self.log.line("failed", "error", **failed(error))

    def close(self) -> None:
        """Write what waits."""
        if self.live.shadow:
            self.live.shadow.stop()
        for journal in (self.journal, self.outcomes):
            if not journal.close():
                self.log.line("entries are lost", "error", entries=journal.waiting, reason=journal.failing)

    def _first(self) -> tuple[Release, str | None]:
        try:
            return load(self.settings, self._features), None
        except InputError as error:
            with suppress(InputError):
                if kept := load_kept(self.settings, self._features, self._kept):
                    self.log.line("bundle refused, the last good one is served", "error", reason=str(error))
                    return kept, str(error)
            raise

    def _live(self, release: Release) -> Live:
        live = Live(release, self._desk)
        if self.killed:  # whichever model it is
            live.breaker.kill(*self.killed)
        if self.challenger:
            second = self.challenger.release
            contracts = {"champion": release.contract, "challenger": second.contract}
            live.shadow = Shadow(second.scorer.score, self._compared, **contracts)
        return live

    def _challenger(self) -> Live | None:
        if self.settings.challenger_dir is None:
            if self.settings.challenger_share:
                raise InputError(
                    "SERVING_CHALLENGER_SHARE: expected SERVING_CHALLENGER_DIR too, the bundle that answers it"
                )
            return None
        changed = {"model_dir": self.settings.challenger_dir, "model_hash": None, "model_version": None}
        release = load(self.settings.model_copy(update=changed), self._features)
        return Live(release, self._desk, challenger=True)

    def _in_canary(self, call: Call) -> bool:
        key = call.headers.get(_CANARY_KEY) or call.id.encode()
        salt = b"" if self.challenger is None else self.challenger.release.hash.encode()
        return in_canary(key, self.settings.challenger_share, salt)

    def _tell_state(self) -> None:
        tell = self.metrics.tell
        tell("serving_last_good", "1 where the bundle that was asked for was refused", lambda: bool(self.refused))
        tell("serving_breaker_open", "1 where the baseline answers", lambda: self.live.breaker.state != "closed")
        self._tell_journal("journal", self.journal)
        self._tell_journal("feedback", self.outcomes)

    def _tell_journal(self, name: str, journal: Journal) -> None:
        tell = self.metrics.tell
        tell(f"serving_{name}_waiting", "Entries that wait to be written", lambda: journal.waiting)
        tell(f"serving_{name}_failing", "1 where entries cannot be written", lambda: bool(journal.failing))
        self.metrics.tell_count(f"serving_{name}_dropped", "Entries that had no room", lambda: journal.dropped)


async def _answer(live: Live, form: str, call: Call) -> tuple[Answer, int] | None:
    """A release's answer, with the number of rows scored; None where a challenger has none."""
    call.asked = asked = live.forms[form].read(call)
    scored = await live.score(Request(call.id, asked, call.alone))
    if scored is None:
        return None
    call.model = live.release.hash[:12]
    answer = live.forms[form].write(call, asked, scored)
    if scored.source != "model":  # not every form has a place for it
        answer.headers = (*answer.headers, (b"x-source", scored.source.encode()))
    return answer, asked.size


def _spread(release: Release) -> float:
    """How far scores lie apart."""
    told = release.reference["scores"].get("score", {}) if release.contract["task"] == "regression" else {}
    edges = told.get("edges") or [0, 1]
    return edges[-1] - edges[0] or 1


def _access(settings: Settings) -> Access:
    if (settings.keys_file is None) != settings.open:
        raise InputError(
            "expected SERVING_KEYS_FILE, a file of keys (`python -m serving.access NAME SCOPE...` makes one), or "
            f"SERVING_OPEN=1, which lets everybody ask for predictions; got {'both' if settings.open else 'neither'}"
        )
    return Access.from_file(settings.keys_file) if settings.keys_file else Access.open()


class Because(msgspec.Struct):
    """Why somebody does something."""

    because: str
