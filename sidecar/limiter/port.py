"""The port that every limiter implements.

A file of its own: the gate imports the port and no limiter.
"""

from collections.abc import Sequence
from typing import Protocol

from sidecar.core.model import Bucket, Taken


class Limiter(Protocol):
    """Counts what was taken. All adapters pass one contract suite. Raises core.errors.Fault when it cannot tell."""

    immediate: bool
    """`take_now` and `peek_now` hardly ever give None, so that a decision can be had without a task."""

    async def take(self, buckets: Sequence[Bucket], now: float) -> Taken:
        """Take every bucket's cost, or (one of them short) nothing at all; one atomic step. `now` in Unix seconds."""

    async def peek(self, buckets: Sequence[Bucket], now: float) -> Taken:
        """What `take` would say, with `remaining` as it stands now. Nothing is taken."""

    def take_now(self, buckets: Sequence[Bucket], now: float) -> Taken | None:
        """As `take`. None where it would have to wait; nothing is taken then."""

    def peek_now(self, buckets: Sequence[Bucket], now: float) -> Taken | None:
        """As `peek`. None where it would have to wait."""
