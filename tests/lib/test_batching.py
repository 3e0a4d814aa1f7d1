"""The Batcher: one batch for all that waits, in order, and a poisoned item fails alone."""

import asyncio
import threading

import pytest

from aiplatform.lib.batching import Batcher
from aiplatform.lib.errors import Unavailable


def test_what_waits_while_a_batch_is_handled_is_handled_as_one() -> None:
    batches: list[list[int]] = []
    gate = threading.Event()

    def handle(items: list[int]) -> list[int]:
        batches.append(items)
        gate.wait(5)
        return [item * 2 for item in items]

    async def run() -> list[int]:
        batcher = Batcher("doubling", handle)
        first = asyncio.ensure_future(batcher.submit(0))
        while not batches:  # noqa: ASYNC110 - the other side is a thread
            await asyncio.sleep(0.001)
        rest = [asyncio.ensure_future(batcher.submit(number)) for number in range(1, 10)]
        await asyncio.sleep(0)
        gate.set()
        return list(await asyncio.gather(first, *rest))

    assert asyncio.run(run()) == [number * 2 for number in range(10)]
    assert batches == [[0], list(range(1, 10))]


def test_a_poisoned_item_fails_alone() -> None:
    def handle(items: list[int]) -> list[int]:
        if 7 in items:
            raise ValueError("seven")
        return items

    async def run() -> list[object]:
        batcher = Batcher("fragile", handle)
        return list(await asyncio.gather(*(batcher.submit(number) for number in range(10)), return_exceptions=True))

    outcomes = asyncio.run(run())
    assert [outcome for outcome in outcomes if outcome != 7 and not isinstance(outcome, ValueError)] == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        8,
        9,
    ]
    assert isinstance(outcomes[7], ValueError)


def test_an_unavailable_part_fails_the_batch_at_once_and_is_asked_only_once() -> None:
    asked = []

    def handle(items: list[int]) -> list[int]:
        asked.append(len(items))
        raise Unavailable

    async def run() -> list[object]:
        batcher = Batcher("down", handle)
        return list(await asyncio.gather(*(batcher.submit(number) for number in range(20)), return_exceptions=True))

    assert all(isinstance(outcome, Unavailable) for outcome in asyncio.run(run()))
    assert sum(asked) == 20


def test_a_batch_is_bounded_in_items_and_in_bytes() -> None:
    sizes: list[int] = []
    gate = threading.Event()

    def handle(items: list[bytes]) -> list[None]:
        gate.wait(5)
        sizes.append(len(items))
        return [None] * len(items)

    async def run() -> None:
        batcher = Batcher("bounded", handle, limit=4, limit_bytes=100, size=len)
        waiting = [asyncio.ensure_future(batcher.submit(b"x" * 60)) for _ in range(6)]
        waiting += [asyncio.ensure_future(batcher.submit(b"")) for _ in range(8)]
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(*waiting)

    asyncio.run(run())
    assert max(sizes) == 4
    assert sum(sizes) == 14
    assert sizes[1] == 2


def test_a_caller_that_has_gone_disturbs_nobody() -> None:
    async def run() -> int:
        batcher: Batcher[int, int] = Batcher("patient", lambda items: items)
        gone = asyncio.ensure_future(batcher.submit(1))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        return await batcher.submit(2)

    assert asyncio.run(run()) == 2


def test_closing_handles_what_waits() -> None:
    seen: list[int] = []

    def handle(items: list[int]) -> list[None]:
        seen.extend(items)
        return [None] * len(items)

    batcher: Batcher[int, None] = Batcher("closing", handle)
    for number in range(100):
        batcher.put(number)
    assert batcher.close(5)
    assert seen == list(range(100))
