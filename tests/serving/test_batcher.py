import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from serving.batcher import Batcher


class Doubling:
    """Doubles what it is asked, once it may go on; fails where anything is negative."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.go = asyncio.Event()

    async def __call__(self, asked: Sequence[int]) -> list[int]:
        self.calls.append(list(asked))
        await self.go.wait()
        if min(asked) < 0:
            raise ValueError("below zero")
        return [2 * number for number in asked]


def test_what_came_at_the_same_moment_is_answered_in_one_call() -> None:
    async def ask() -> tuple[Any, Any]:
        doubling = Doubling()
        doubling.go.set()
        batcher = Batcher(doubling)
        first = await asyncio.gather(*map(batcher.ask, range(5)))
        return [*first, await batcher.ask(7)], doubling.calls

    assert asyncio.run(ask()) == ([0, 2, 4, 6, 8, 14], [[0, 1, 2, 3, 4], [7]])


def test_who_asks_a_turn_of_the_loop_later_is_answered_in_the_same_call() -> None:
    async def ask() -> Any:
        doubling = Doubling()
        doubling.go.set()
        batcher = Batcher(doubling)
        first = asyncio.create_task(batcher.ask(1))
        await asyncio.sleep(0)
        return await asyncio.gather(first, batcher.ask(2)), doubling.calls

    assert asyncio.run(ask()) == ([2, 4], [[1, 2]])


def test_what_queued_while_others_were_answered_is_answered_in_one_call() -> None:
    async def ask() -> tuple[Any, Any]:
        doubling = Doubling()
        batcher = Batcher(doubling)
        first = asyncio.create_task(batcher.ask(1))
        while not doubling.calls:
            await asyncio.sleep(0)
        others = [asyncio.create_task(batcher.ask(number)) for number in (2, 3, 4)]
        await asyncio.sleep(0)
        doubling.go.set()
        return await asyncio.gather(first, *others), doubling.calls

    assert asyncio.run(ask()) == ([2, 4, 6, 8], [[1], [2, 3, 4]])


def test_an_error_reaches_all_of_its_call_and_nobody_after() -> None:
    async def ask() -> list[Any]:
        doubling = Doubling()
        doubling.go.set()
        batcher = Batcher(doubling)
        failed = await asyncio.gather(batcher.ask(1), batcher.ask(-1), return_exceptions=True)
        return [*failed, await batcher.ask(3)]

    one, two, three = asyncio.run(ask())
    assert isinstance(one, ValueError)
    assert isinstance(two, ValueError)
    assert three == 6


@pytest.mark.parametrize("value", [1, -1])
def test_a_client_that_left_stops_nobody_else(value: int) -> None:
    async def ask() -> Any:
        doubling = Doubling()
        batcher = Batcher(doubling)
        left, stays = (asyncio.create_task(batcher.ask(number)) for number in (value, 2))
        while not doubling.calls:
            await asyncio.sleep(0)
        left.cancel()
        doubling.go.set()
        await asyncio.gather(left, stays, return_exceptions=True)
        return await batcher.ask(3)

    assert asyncio.run(ask()) == 6


def test_a_loop_that_ended_in_mid_air_leaves_nothing_behind() -> None:
    doubling = Doubling()
    doubling.go.set()
    batcher = Batcher(doubling)
    assert [asyncio.run(batcher.ask(number)) for number in (1, 2)] == [2, 4]


def test_behind_a_long_call_those_who_ask_again_at_once_join_the_ones_who_waited() -> None:
    calls: list[int] = []

    async def slow(asked: Sequence[int]) -> list[int]:
        calls.append(len(asked))
        await asyncio.sleep(0.03)
        return list(asked)

    async def client(batcher: Batcher[int, int]) -> None:
        for number in range(6):
            await batcher.ask(number)

    async def ask() -> None:
        batcher = Batcher(slow)
        early = [asyncio.create_task(client(batcher)) for _ in range(4)]
        while not calls:
            await asyncio.sleep(0)
        await asyncio.gather(*early, *(client(batcher) for _ in range(4)))

    asyncio.run(ask())
    assert calls == [4, 8, 8, 8, 8, 8, 4]
