"""Keys in a YAML or JSON lines file, mirrored in SQLite, so that everything else works as with any other store."""

import asyncio
import fcntl
import io
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import gettempdir, mkdtemp
from typing import Any, Final, Never

from sidecar.config.errors import ConfigError
from sidecar.config.yaml_tree import Entries, Items, Node, Scalar, read_nodes
from sidecar.core.units import Clock, counted
from sidecar.keys.lifecycle import NewHash
from sidecar.keys.ports import Actor, ReadOnlyStore, StoreUnavailable
from sidecar.keys.transfer.fields import LineRules
from sidecar.keys.transfer.formats import BadLine, Entry, KeyFile, safe_name, unknown_field
from sidecar.keys.transfer.importer import InvalidFile
from sidecar.keys.transfer.records import Difference, Record, records_of
from sidecar.store.imports import KeyImports
from sidecar.store.keys import StoredKeys
from sidecar.store.records import StoredRecords
from sidecar.store.sqlite.connection import SqliteDatabase
from sidecar.store.sqlite.listing import count_statement, page_statements
from sidecar.store.sqlite.schema import in_bulk
from sidecar.store.store import SqliteStore
from sidecar.store.usage import StoredAnomalies, StoredQuotas, StoredUsage

# A file of records: a YAML list, or JSON lines.


MAX_BYTES: Final = 64 * 1024 * 1024
"""The largest file. YAML has its own limit (1 MiB), which is also that of a ConfigMap and a Secret."""
_TRUE: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_SHAPE: Final = "the file must be a YAML list of records, or JSON lines"


def read_file(path: str, rules: LineRules) -> Sequence[Record]:
    """The records of a file. Blocks. Raises OSError, and InvalidFile with all problems."""
    with open(path, "rb", opener=_without_waiting) as file:
        return read_records(file.read(MAX_BYTES + 1), rules)


def read_records(content: bytes, rules: LineRules) -> Sequence[Record]:
    """The records in the content of a file. Raises InvalidFile with all problems."""
    if len(content) > MAX_BYTES:
        raise InvalidFile([BadLine(line=1, problem=f"the file is larger than {MAX_BYTES >> 20} MiB")])
    if not content.strip():
        raise InvalidFile([BadLine(line=1, problem="the file is empty; for a file without keys, write []")])
    # A YAML list begins with another character.
    is_json_lines = content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
    return records_of(KeyFile(io.BytesIO(content), "jsonl") if is_json_lines else _yaml_entries(content), rules)


def _without_waiting(path: str, flags: int) -> int:
    """Opening a named pipe that has no writer would block for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _yaml_entries(content: bytes) -> Iterator[Entry | BadLine]:
    try:
        root = read_nodes(content, "")
    except ConfigError as error:
        for problem in error.problems:
            yield BadLine(line=problem.line or 1, problem=problem.message)
        return
    if isinstance(root, Items):
        yield from map(_entry_of, root.items)
    else:
        yield BadLine(line=root.place.line, problem=_SHAPE)


def _entry_of(node: Node) -> Entry | BadLine:
    line = node.place.line
    if not isinstance(node, Entries):
        return BadLine(line=line, problem="is not a record: each item of the list maps fields to values")
    mappings = [node, *(value for _, value in node.entries if isinstance(value, Entries))]
    problems = [unknown_field(name.text for name, _ in node.entries), *map(_twice, mappings)]
    if any(problems):
        return BadLine(line=line, problem=next(filter(None, problems)))
    return Entry(line=line, fields={name.text: _value_of(name.text, value) for name, value in node.entries})


def _twice(node: Entries) -> str:
    names = [name.text for name, _ in node.entries]
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    return "" if twice is None else f"{safe_name(twice)} occurs twice"


def _value_of(name: str, node: Node) -> object:
    """The value as in JSON. Text stays as written, whatever type YAML sees in it: a hash may look like a number.

    Anything else becomes None inside a list or a mapping, where no field allows it.
    """
    match node:
        case Scalar(tag="null"):
            return None
        case Scalar(text=text):
            return _TRUE.get(text.lower(), text) if name == "enabled" and node.tag == "bool" else text
        case Items(items=items):
            return [_text_of(item) for item in items]
        case Entries(entries=entries):
            value_of = _number_of if name == "quotas" else _text_of
            return {key.text: value_of(value) for key, value in entries}


def _text_of(node: Node) -> str | None:
    return node.text if isinstance(node, Scalar) and node.tag != "null" else None


def _number_of(node: Node) -> int | None:
    if not (isinstance(node, Scalar) and node.tag == "int" and node.text.isdecimal() and len(node.text) < _DIGITS):
        return None
    return int(node.text)


_DIGITS: Final = 20


# The store of such a file.


FILE: Final = "file"
"""The actor who issued the keys of a file, and who changes them in the audit."""
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - only a folder with a random name is made in it
_PREFIX: Final = "sidecar-keys-"
_NEW_SECONDS: Final = 60.0
_FOREIGN: Final = f"SELECT 1 FROM api_key WHERE created_by <> '{FILE}' LIMIT 1"  # noqa: S608 - no input


class InvalidKeyFile(StoreUnavailable):
    """The file cannot be read, or is not valid. problems: one line each, with the file's name."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        more = len(self.problems) - 1
        super().__init__(self.problems[0] + (f" (and {counted(more, 'more problem')})" if more else ""))


class _PrivateFolder:
    """A folder for the owner only, in memory where that is possible and TMPDIR names no other place.

    It stays locked while the process lives, so that the next process can remove what a killed one left behind.
    Blocks. Raises StoreUnavailable if it cannot be made.
    """

    def __init__(self) -> None:
        in_memory = os.access(_SHARED_MEMORY, os.W_OK | os.X_OK)
        place = os.environ.get("TMPDIR") or (_SHARED_MEMORY if in_memory else gettempdir())
        for left in Path(place).glob(f"{_PREFIX}*"):
            _remove_unlocked(left)
        try:
            self.name = mkdtemp(prefix=_PREFIX, dir=place)
        except OSError as error:
            where = "name a folder by TMPDIR, or a SQLite database by store.usage"
            raise StoreUnavailable(f"{place} takes no temporary database ({error.strerror}): {where}") from error
        self._lock = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def cleanup(self) -> None:
        rmtree(self.name, ignore_errors=True)
        os.close(self._lock)


def _remove_unlocked(folder: Path) -> None:
    """Remove it, unless it is new: its owner may not have locked it yet."""
    with suppress(OSError):
        found = folder.lstat()
        if found.st_uid != os.geteuid() or time.time() - found.st_mtime < _NEW_SECONDS:
            return
        lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            rmtree(folder)
        finally:
            os.close(lock)


def _remove(folder: _PrivateFolder | None) -> None:
    if folder is not None:
        folder.cleanup()


class FileStore(SqliteStore):
    """The keys of a file, in their own SQLite database.

    If the configuration names a database, it also keeps the use of keys and their changes. Otherwise the database is
    temporary, and these are not kept. Any attempt to change a key raises ReadOnlyStore.
    """

    def __init__(
        self,
        database: SqliteDatabase,
        path: str,
        rules: Callable[[], LineRules],
        folder: _PrivateFolder | None,
    ) -> None:
        """Use `read`. folder: of a temporary database."""
        super().__init__(database)
        self.path, self.rules = path, rules
        self._folder, self._mirror = folder, self.records
        guarded = _ReadOnly(database, path)
        self.keys = _FileKeys(guarded, pages=page_statements, count=count_statement)
        self.imports, self.records = KeyImports(guarded, bulk=in_bulk), StoredRecords(guarded)
        if folder is not None:
            nowhere = _Nowhere(database)
            self.usage, self.anomalies = StoredUsage(nowhere), StoredAnomalies(nowhere)
            self.quotas = StoredQuotas(nowhere)

    @classmethod
    async def read(
        cls,
        path: str,
        *,
        usage: str,
        rules: Callable[[], LineRules],
        clock: Clock,
        timings: Callable[[str, float], None],
    ) -> "FileStore":
        """Read the file at `path`. usage: path of the SQLite database; empty for a temporary one.

        rules: for the records. Raises InvalidKeyFile and StoreUnavailable.
        """
        records = await asyncio.to_thread(_read, path, rules)
        folder = None if usage else await asyncio.to_thread(_PrivateFolder)
        place = usage if folder is None else os.path.join(folder.name, "keys.db")
        try:
            database = await SqliteDatabase.open(place, create=True, clock=clock, timings=timings)
        except BaseException:
            _remove(folder)
            raise
        store = cls(database, path, rules, folder)
        try:
            if await database.read("apply", _FOREIGN):
                raise StoreUnavailable(
                    f"{usage} holds keys that did not come from a file: name another one as store.usage"
                )
            await store.take(records)
        except BaseException:
            await store.close()
            raise
        return store

    @property
    def keeps_usage(self) -> bool:
        """Whether use, changes and quotas are kept."""
        return self._folder is None

    async def records_now(self) -> Sequence[Record]:
        """The current records of the file. Raises InvalidKeyFile."""
        return await asyncio.to_thread(_read, self.path, self.rules)

    async def take(self, records: Sequence[Record]) -> Difference:
        """Make the keys match these records, and return the changes. Raises StoreUnavailable."""
        actor = Actor(name=FILE, source=self.path) if self.keeps_usage else None
        return await self._mirror.mirror(records, at=self.database.now(), actor=actor)

    async def close(self) -> None:
        await super().close()
        _remove(self._folder)


def _read(path: str, rules: Callable[[], LineRules]) -> Sequence[Record]:
    try:
        return read_file(path, rules())
    except OSError as error:
        raise InvalidKeyFile([f"{path}: cannot be read: {error.strerror}"]) from error
    except InvalidFile as error:
        raise InvalidKeyFile([f"{path}:{problem}" for problem in error.problems]) from error


class _FileKeys(StoredKeys):
    async def rehash(self, hashes: Sequence[NewHash], at: int, actor: Actor) -> None:
        """Do nothing: the hashes come from the file."""


class _Over:
    """A database that reads through another one."""

    def __init__(self, database: SqliteDatabase) -> None:
        self.generation, self.read_generation = database.generation, database.read_generation
        self.changes_since, self.may_issue = database.changes_since, database.may_issue
        self.now, self.indexed = database.now, database.indexed
        self.lookup, self.read = database.lookup, database.read
        self.write_problem = ""

    async def retry_write(self) -> None:
        """Nothing was written."""


class _ReadOnly(_Over):
    """Refuses each transaction."""

    def __init__(self, database: SqliteDatabase, path: str) -> None:
        super().__init__(database)
        self._path = path

    @asynccontextmanager
    async def transaction(self, operation: str) -> AsyncIterator[Never]:
        raise ReadOnlyStore(self._path)
        yield


class _Nowhere(_Over):
    """Accepts each transaction and discards it."""

    @asynccontextmanager
    async def transaction(self, operation: str) -> AsyncIterator["_Dropping"]:
        yield _Dropping()


class _Dropping:
    """A connection to nothing: it has no rows and writes none."""

    async def execute(self, sql: str, values: Sequence[Any] = ()) -> None:
        pass

    async def fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        return []

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        pass

    async def insert(self, into: str, rows: Sequence[Sequence[Any]]) -> None:
        pass
