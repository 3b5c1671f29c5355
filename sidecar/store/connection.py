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

    A statement that does not expect this leaves it as what it is then: a store that cannot be used.
    """


RETRY_SECONDS: Final = 2.0
"""How often a write is tried again, as long as the last one failed."""


class Connection(Protocol):
    """A connection inside a transaction. Every method raises DuplicateRow and StoreUnavailable."""

    async def execute(self, sql: str, values: Sequence[Any] = ()) -> None:
        """Run a statement that returns no rows."""

    async def fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a query, or of a statement with RETURNING."""

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement once for each row of values."""

    async def insert(self, into: str, rows: Sequence[Sequence[Any]]) -> None:
        """Insert all rows in as few statements as possible. `into` is `INSERT INTO table (columns)`."""


class Database(Protocol):
    """An open database. `operation` names a step in the metrics. Every method raises StoreUnavailable."""

    write_problem: str
    """Why the last change was not written; empty where it was."""

    async def retry_write(self) -> None:
        """Where the last change was not written, write something, so that `write_problem` ends by itself."""

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
        """Rows for a request, which cannot wait long. Never behind a management query."""

    async def read(self, operation: str, sql: str, values: Any = ()) -> list[Any]:
        """Rows for management. Statements of the engine's own may have values of another shape."""

    def transaction(self, operation: str) -> AbstractAsyncContextManager[Connection]:
        """One transaction, committed at the end and rolled back on an exception. Writers wait for each other."""


class Steps:
    """What is around each step of an engine. name: of the store, in messages. timings: gets a step and its seconds."""

    def __init__(self, name: str, timings: Callable[[str, float], None]) -> None:
        self.name, self._timings = name, timings
        self.is_open = True
        self.write_problem = ""
        """Why the last change was not written; empty where it was."""

    @contextmanager
    def operation(self, operation: str) -> Iterator[None]:
        """Measure the time inside, and refuse to begin once the store is closed."""
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
        """Note in `write_problem` how a change ends. Raises NotWritten."""
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
    """Whether `work` ends within that time, which it gets again where this process stood still meanwhile."""
    loop = asyncio.get_running_loop()
    for _ in range(2):
        end = loop.time() + seconds
        await asyncio.wait([work], timeout=seconds)
        # Where the loop wakes up late, this process stood still, and not the store.
        if work.done() or loop.time() - end < _LATE_SECONDS:
            break
    return work.done()
