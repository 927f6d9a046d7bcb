import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from serving.batcher import Batcher


def _columns(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values)}


def test_what_queued_while_the_model_was_busy_is_scored_in_one_call() -> None:
    calls: list[int] = []
    busy, go = threading.Event(), threading.Event()

    def score(columns: Any) -> np.ndarray:
        calls.append(len(columns["x"]))
        busy.set()
        assert go.wait(30)
        return np.asarray(columns["x"][:, None] * 2)

    async def ask() -> list[np.ndarray]:
        batcher = Batcher(score, in_thread=True)
        first = asyncio.create_task(batcher.score(_columns(1)))
        while not busy.is_set():
            await asyncio.sleep(0)
        others = [asyncio.create_task(batcher.score(_columns(n, n + 0.5))) for n in range(2, 5)]
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(first, *others)

    answers = asyncio.run(ask())
    assert calls == [1, 6]
    assert [answer[:, 0].tolist() for answer in answers] == [[2], [4, 5], [6, 7], [8, 9]]


def test_what_came_at_the_same_moment_is_scored_in_one_call() -> None:
    calls: list[int] = []

    def score(columns: Any) -> np.ndarray:
        calls.append(len(columns["x"]))
        return np.asarray(columns["x"][:, None] * 2)

    async def ask() -> list[Any]:
        batcher = Batcher(score, in_thread=False)
        first = await asyncio.gather(*(batcher.score(_columns(n)) for n in range(5)))
        return [*first, await batcher.score(_columns(7))]

    assert [answer.tolist() for answer in asyncio.run(ask())] == [[[0]], [[2]], [[4]], [[6]], [[8]], [[14]]]
    assert calls == [5, 1]


@pytest.mark.parametrize("in_thread", [False, True])
def test_an_error_of_one_request_is_its_own(in_thread: bool) -> None:
    def score(columns: Any) -> np.ndarray:
        if (columns["x"] < 0).any():
            raise ValueError("below zero")
        return np.asarray(columns["x"][:, None])

    async def ask() -> list[Any]:
        batcher = Batcher(score, in_thread=in_thread)
        asked = [batcher.score(_columns(n)) for n in (1, -1, 2)]
        return await asyncio.gather(*asked, return_exceptions=True)

    one, wrong, two = asyncio.run(ask())
    assert (one.tolist(), two.tolist()) == ([[1]], [[2]])
    assert isinstance(wrong, ValueError)


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_client_that_left_stops_nobody_else(in_thread: bool) -> None:
    async def ask() -> Any:
        batcher = Batcher(lambda columns: columns["x"][:, None], in_thread=in_thread)
        left = asyncio.create_task(batcher.score(_columns(1)))
        stays = asyncio.create_task(batcher.score(_columns(2)))
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        return await stays

    assert asyncio.run(ask()).tolist() == [[2]]
