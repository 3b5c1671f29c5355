"""Items that are collected on the request's path and delivered off it, in batches."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")
P = TypeVar("P")
_Jobs = SimpleQueue[Callable[[], None] | None]


class Batches(Generic[T, P]):
    """Items waiting for `deliver`, which may block: it is called in a thread of its own, one at a time.

    Items beyond `max_items`, or beyond a total weight of `max_weight`, are dropped and counted, as are batches for
    which `deliver` or `prepare` raises. prepare: turns a batch into what is delivered, between two turns of the loop.
    """

    def __init__(
        self,
        deliver: Callable[[P], None],
        *,
        prepare: Callable[[list[T]], P],
        weigh: Callable[[T], int],
        at_once: int,
        max_items: int,
        max_weight: int,
    ) -> None:
        self.dropped = 0
        self.delivered = 0
        self._deliver, self._prepare, self._weigh = deliver, prepare, weigh
        self._at_once, self._max_items, self._max_weight = at_once, max_items, max_weight
        self._weight = 0
        self._waiting: list[T] = []
        self._delivering: asyncio.Future[None] | None = None
        self._jobs: _Jobs | None = None
        """Set while a thread is delivering."""

    def record(self, item: T) -> None:
        """Add an item to the next batch."""
        weight = self._weight + self._weigh(item)
        if len(self._waiting) >= self._max_items or weight > self._max_weight:
            self.dropped += 1
            return
        self._weight = weight
        self._waiting.append(item)

    async def run(self, interval: float = 0.2) -> None:
        """Deliver waiting items every `interval` seconds, until cancelled; `flush` delivers the rest.

        Raises what `prepare` raises, after dropping the batch.
        """
        while True:
            await asyncio.sleep(interval)
            await self._deliver_waiting()

    async def flush(self, timeout: float = 2.0) -> None:  # noqa: ASYNC109 - running out of time is no error here
        """Deliver all waiting items. The receiver may be stuck: what is left after `timeout` seconds is dropped."""
        try:
            async with asyncio.timeout(timeout):
                while self._waiting or self._delivering is not None:
                    with suppress(Exception):  # From `prepare`: each exception drops a batch.
                        await self._deliver_waiting()
        except TimeoutError:
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._weight = 0
        finally:
            self._end_thread()

    async def _deliver_waiting(self) -> None:
        while self._waiting or self._delivering is not None:
            await asyncio.shield(self._delivering or self._hand_over())

    def _next_batch(self) -> list[T]:
        batch = self._waiting[: self._at_once]
        del self._waiting[: self._at_once]
        self._weight -= sum([self._weigh(item) for item in batch])
        return batch

    def _hand_over(self) -> asyncio.Future[None]:
        """A future that is done when a batch is delivered or lost."""
        batch = self._next_batch()
        count = len(batch)
        try:
            prepared = self._prepare(batch)
        except Exception:
            self.dropped += count
            raise
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._delivering = done

        def settle(delivered: bool) -> None:
            self.delivered += count if delivered else 0
            self.dropped += 0 if delivered else count
            self._delivering = None
            done.set_result(None)

        def work() -> None:
            delivered = _done(self._deliver, prepared)
            with suppress(RuntimeError):  # the loop is closed; nothing waits
                loop.call_soon_threadsafe(settle, delivered)

        try:
            self._do_in_thread(work)
        except RuntimeError:  # no thread available; the next batch may succeed
            settle(False)
        return done

    def _do_in_thread(self, job: Callable[[], None]) -> None:
        """Use a daemon thread: a stuck one must not keep the process alive. Raises RuntimeError if none can start."""
        if self._jobs is None:
            jobs: _Jobs = SimpleQueue()
            Thread(target=_work, args=(jobs,), daemon=True).start()
            self._jobs = jobs
        self._jobs.put(job)

    def _end_thread(self) -> None:
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None


def _work(jobs: _Jobs) -> None:
    while (job := jobs.get()) is not None:
        job()


def _done(deliver: Callable[[P], None], prepared: P) -> bool:
    try:
        deliver(prepared)
    except Exception:  # a broken pipe, a full disk or a dead collector must not end the process
        return False
    return True
