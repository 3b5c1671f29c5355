"""The port that every limiter implements.

A file of its own: the gate imports the port, but no limiter.
"""

from collections.abc import Sequence
from typing import Protocol

from sidecar.core.model import Bucket, Taken


class Limiter(Protocol):
    """Counts what was taken. All adapters pass one contract suite. Raises core.errors.Fault if it is unavailable."""

    immediate: bool
    """Whether `take_now` and `peek_now` hardly ever return None, so that no task is needed for a decision."""

    async def take(self, buckets: Sequence[Bucket], now: float) -> Taken:
        """Take every bucket's cost, or nothing if any refuses; one atomic step. `now` in Unix seconds."""

    async def peek(self, buckets: Sequence[Bucket], now: float) -> Taken:
        """What `take` would say, with `remaining` as it stands now. Nothing is taken."""

    def take_now(self, buckets: Sequence[Bucket], now: float) -> Taken | None:
        """As `take`. None, with nothing taken, if it would have to wait."""

    def peek_now(self, buckets: Sequence[Bucket], now: float) -> Taken | None:
        """As `peek`. None if it would have to wait."""
