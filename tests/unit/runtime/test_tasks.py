"""Background work continues after a failure, and the failure is counted."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from sidecar.core.errors import Reason
from sidecar.keys.ports import StoreUnavailable
from sidecar.runtime import tasks
from sidecar.runtime.tasks import Background

WAIT_SECONDS = 20.0


class Failing:
    """Work that fails in its first rounds."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures = list(failures)
        self.went_on = asyncio.Event()

    async def round(self) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.went_on.set()


@pytest.fixture
def failed() -> Counter[Reason]:
    return Counter()


@pytest.fixture
async def background(failed: Counter[Reason]) -> AsyncIterator[Background]:
    async with AsyncExitStack() as stack:
        yield Background(stack, lambda reason: failed.update([reason]))


FAILURES = [
    (RuntimeError("can't start new thread"), Reason.INTERNAL),
    (StoreUnavailable("locked"), Reason.STORE_UNAVAILABLE),
    (asyncio.CancelledError(), Reason.INTERNAL),
    (TimeoutError(), Reason.INTERNAL),
]
NAMES = [type(failure).__name__ for failure, _ in FAILURES]


@pytest.mark.parametrize(("failure", "reason"), FAILURES, ids=NAMES)
async def test_a_round_that_fails_is_counted_and_not_the_last(
    background: Background, failed: Counter[Reason], failure: BaseException, reason: Reason
) -> None:
    work = Failing(failure, failure)
    background.repeat(work.round, 0)
    async with asyncio.timeout(WAIT_SECONDS):
        await work.went_on.wait()
    assert failed == {reason: 2}


@pytest.mark.parametrize(("failure", "reason"), FAILURES, ids=NAMES)
async def test_a_loop_that_fails_is_counted_and_started_again(
    background: Background,
    failed: Counter[Reason],
    failure: BaseException,
    reason: Reason,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "RESTART_SECONDS", 0)
    work = Failing(failure, failure)
    background.run(work.round)
    async with asyncio.timeout(WAIT_SECONDS):
        await work.went_on.wait()
    assert failed == {reason: 2}


async def test_what_runs_ends_with_its_stack_even_in_the_middle_of_a_round() -> None:
    failed: Counter[Reason] = Counter()
    begun, ended = asyncio.Event(), asyncio.Event()

    async def forever() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with AsyncExitStack() as stack:
        Background(stack, lambda reason: failed.update([reason])).run(forever)
        await begun.wait()
    assert ended.is_set()
    assert not failed


async def test_a_timer_that_raises_is_counted_and_the_networks_errors_are_not(failed: Counter[Reason]) -> None:
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    async with AsyncExitStack() as stack:
        Background(stack, lambda reason: failed.update([reason])).count_failed_callbacks()

        def fail(error: Exception) -> None:
            raise error

        loop.call_soon(fail, RuntimeError())
        loop.call_soon(fail, TimeoutError("[Errno 110] Connection timed out"))
        loop.call_soon(done.set)
        await done.wait()
    assert failed == {Reason.INTERNAL: 1}
    assert loop.get_exception_handler() is None
