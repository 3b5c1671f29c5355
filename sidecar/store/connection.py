"""The port between statements and engines.

Statements are written once, in the SQL that SQLite (3.40 or later) and PostgreSQL both speak, with a `?` for each
value; an engine whose placeholders look different translates them. Each engine brings a Database with its Connection,
a schema, the statements that list keys (full-text search differs), and what makes a bulk import cheap.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Final, Protocol

from sidecar.keys.ports import NotWritten, StoreUnavailable


class DuplicateRow(StoreUnavailable):
    """A row breaks a constraint: another row has its id or its digest.

    A caller that does not expect this treats it as what it then is: an unusable store.
    """


RETRY_SECONDS: Final = 2.0
"""How often a failed write is retried."""


class Connection(Protocol):
    """A connection inside a transaction. Every method raises DuplicateRow and StoreUnavailable."""

    async def execute(self, sql: str, values: Sequence[Any] = ()) -> None:
        """Run a statement that returns no rows."""

    async def fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a query, or of a statement with RETURNING."""

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement once for each row of values."""

    async def insert(self, into: str, rows: Sequence[Sequence[Any]]) -> None:
        """Insert all rows with as few statements as possible. `into` is `INSERT INTO table (columns)`."""


class Database(Protocol):
    """An open database. `operation` names a step in the metrics. Every method raises StoreUnavailable."""

    write_problem: str
    """Why the last change was not written; empty if it was."""

    async def retry_write(self) -> None:
        """If the last change was not written, write something, so that `write_problem` clears once this works."""

    async def may_issue(self) -> bool:
        """Whether keys may be issued and changed over this connection. Raises StoreUnavailable."""

    def generation(self) -> int | None:
        """As KeyReader.generation."""

    async def read_generation(self) -> int:
        """As KeyReader.read_generation."""

    def changes_since(self, generation: int) -> frozenset[str] | None:
        """As KeyReader.changes_since."""

    def now(self) -> int:
        """Microseconds of UTC."""

    def indexed(self, table: str, index: str) -> str:
        """The table as a FROM clause names it, with the engine's hint to use this index, if it has one."""

    async def lookup(self, operation: str, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Rows for a request, which cannot wait long; never queued behind a management query."""

    async def read(self, operation: str, sql: str, values: Any = ()) -> list[Any]:
        """Rows for management. Engine-specific statements may have values of another shape."""

    def transaction(self, operation: str) -> AbstractAsyncContextManager[Connection]:
        """One transaction, committed at the end and rolled back on an exception. Writers wait for each other."""


class Steps:
    """Wraps each step of an engine. name: of the store, in messages. timings: receives each step and its seconds."""

    def __init__(self, name: str, timings: Callable[[str, float], None]) -> None:
        self.name, self._timings = name, timings
        self.is_open = True
        self.write_problem = ""
        """Why the last change was not written; empty if it was."""

    @contextmanager
    def operation(self, operation: str) -> Iterator[None]:
        """Time the block. Raises StoreUnavailable once the store is closed."""
        if not self.is_open:
            raise StoreUnavailable(f"the key store {self.name} is closed", cause="is closed")
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            yield
        finally:
            self._timings(operation, loop.time() - started)

    @contextmanager
    def write_noted(self) -> Iterator[None]:
        """Record the outcome of a change in `write_problem`. Raises NotWritten."""
        try:
            yield
        except DuplicateRow:
            raise
        except StoreUnavailable as error:
            self.write_problem = str(error)
            raise NotWritten(str(error), cause=error.cause) from error
        self.write_problem = ""


_LATE_SECONDS: Final = 0.1


async def answers_within(seconds: float, work: asyncio.Future[Any]) -> bool:
    """Whether `work` finishes in time. It gets the same time once more if this process was paused meanwhile."""
    loop = asyncio.get_running_loop()
    for _ in range(2):
        end = loop.time() + seconds
        await asyncio.wait([work], timeout=seconds)
        # If the loop wakes up late, this process was paused, and the store is not to blame.
        if work.done() or loop.time() - end < _LATE_SECONDS:
            break
    return work.done()
