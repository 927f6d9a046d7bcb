"""Requests scored together: those that came at the same moment, or while the model was busy. Change here to score
elsewhere than in this process.

A call costs much the same for one row and for sixteen. Nobody waits for others to come.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline.scoring import Columns, Scorer

INLINE_ROWS = 200  # take less time than a thread takes to start on them

Score = Callable[[Columns], np.ndarray]
Waiting = list[tuple[Columns, "asyncio.Future[np.ndarray]"]]


class Batcher:
    """A score function that is called for all that wait, here or in a thread of its own."""

    def __init__(self, score: Score, *, in_thread: bool) -> None:
        self._score = score
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batcher") if in_thread else None
        self._waiting: Waiting = []
        self._busy = False

    async def score(self, columns: Columns) -> np.ndarray:
        """Scores [n, k] of these rows; an error that they cause is raised here, and nowhere else."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[np.ndarray] = loop.create_future()
        self._waiting.append((columns, future))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._take, loop)
        return await future

    def _take(self, loop: asyncio.AbstractEventLoop) -> None:
        """Score what waits; whoever comes meanwhile is next."""
        taken, self._waiting = self._waiting, []
        self._busy = bool(taken)
        if not taken:
            return
        asked = [columns for columns, _ in taken]
        if self._thread is None:
            self._hand_out(taken, self._score_all(asked), loop)
            return
        done = loop.run_in_executor(self._thread, self._score_all, asked)
        done.add_done_callback(lambda answers: self._hand_out(taken, answers.result(), loop))

    def _hand_out(
        self, taken: Waiting, answers: Sequence[np.ndarray | Exception], loop: asyncio.AbstractEventLoop
    ) -> None:
        for (_, future), answer in zip(taken, answers, strict=True):
            if future.done():  # its client has left
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        loop.call_soon(self._take, loop)

    def _score_all(self, requests: Sequence[Columns]) -> Sequence[np.ndarray | Exception]:
        try:
            if len(requests) == 1:
                return [self._score(requests[0])]
            joined = {name: np.concatenate([columns[name] for columns in requests]) for name in requests[0]}
            ends = np.cumsum([len(next(iter(columns.values()))) for columns in requests])
            return np.split(self._score(joined), ends[:-1])
        except Exception as error:
            if len(requests) == 1:
                return [error]
            return [answer for columns in requests for answer in self._score_all([columns])]


class Scoring:
    """A scorer for many clients at once: batches, and a thread for large requests, which onnxruntime lets run beside
    this one. scikit-learn would not."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._sklearn = scorer.contract["runtime"] == "sklearn"
        self._batcher = Batcher(scorer.score, in_thread=self._sklearn)

    async def score(self, columns: Columns) -> np.ndarray:
        """Scores [n, k] of these rows."""
        if self._sklearn or len(next(iter(columns.values()))) <= INLINE_ROWS:
            return await self._batcher.score(columns)
        return await asyncio.to_thread(self._scorer.score, columns)
