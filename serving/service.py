"""One request from its body to its answer: read, scored, counted, written. Change here to do more with each one."""

from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np

from serving import protocols
from serving.batcher import Scoring
from serving.problems import Answer, Problem, problem_of
from serving.protocols import Call, Form, Scored
from serving.release import Release
from serving.settings import Settings
from serving.telemetry import Log, Metrics, failed
from serving.v2 import Infer

Handler = Callable[[Call], Coroutine[Any, Any, tuple[Answer, int]]]


class Service:
    """A release that answers."""

    def __init__(self, release: Release, settings: Settings, metrics: Metrics, log: Log) -> None:
        self.release = release
        self.metrics = metrics
        self.log = log
        self.predict = protocols.Predict(release, settings.max_rows)
        self.infer = Infer(release, settings.max_rows)
        self.forms: tuple[Form, ...] = (self.predict, self.infer, protocols.Invocations(release, settings.max_rows))
        self._score = Scoring(release.scorer).score
        self.ready = self._answers()

    def handler(self, form: Form) -> Handler:
        """What answers a request in that form, with the number of rows scored; raises Problem or RowError."""

        async def handle(call: Call) -> tuple[Answer, int]:
            protocols.check_media_type(form, call.headers)
            asked = form.read(call)
            scores = await self._score(asked.columns)
            if not np.isfinite(scores).all():
                raise Problem(500, "the model gave a score that is no finite number")
            scored = Scored(scores, self.release.inputs.unseen(asked.columns))
            self.metrics.scored(scored.scores, scored.unseen)
            return form.write(call, asked, scored), asked.rows

        return handle

    def refuse(self, error: Exception, call: Call) -> Answer:
        """The problem that an exception is to the client; what nobody foresaw is logged."""
        problem = problem_of(error)
        if problem.status == 500:
            self.log.line("failed", "error", request_id=call.id, **failed(error))
        self.metrics.refused(problem.reason)
        return problem.answer(call.id)

    def _answers(self) -> bool:
        """Answer a request for the example once, so that no client's is the first."""
        call = Call("warm-up", {}, protocols.example(self.release))
        asked = self.predict.read(call)
        scored = Scored(self.release.scorer.score(asked.columns), self.release.inputs.unseen(asked.columns))
        return self.predict.write(call, asked, scored).status == 200
