"""Passwords for PostgreSQL, where libpq looks for them: asyncpg would read its file of passwords on the event loop."""

import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl

from sidecar.config.load import Environment
from sidecar.keys.ports import StoreUnavailable

_MOST_BYTES: Final = 1024 * 1024


def password_of_environ(environ: Mapping[str, str]) -> str | None:
    """PGPASSWORD, or what PGPASSWORD_FILE holds now. Blocks. Raises StoreUnavailable."""
    try:
        return Environment(environ).get("PGPASSWORD")
    except ValueError as error:
        raise StoreUnavailable(str(error)) from error


def passfile_of(url: str, environ: Mapping[str, str]) -> bytes | None:
    """What the file of passwords holds that belongs to a parsed store URL; empty where there is none. Blocks.

    None leaves it to asyncpg, which warns of a file that others may read, or that is none, and reads nothing of it.
    """
    named = dict(parse_qsl(url.partition("?")[2])).get("passfile") or environ.get("PGPASSFILE")
    try:
        with open(named or Path("~/.pgpass").expanduser(), "rb", opener=_without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & (stat.S_IRWXG | stat.S_IRWXO):
                return None
            return file.read(_MOST_BYTES)
    except (OSError, RuntimeError, ValueError):
        return b""


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


@contextmanager
def in_memory(content: bytes | None) -> Iterator[str | None]:
    """The path of a file of passwords in memory: which of its lines is meant, asyncpg finds out as it does on a disk.

    None where `content` is None, or where there is no such memory.
    """
    if content is None or sys.platform != "linux":
        yield None
        return
    descriptor = os.memfd_create("passfile")
    try:
        os.fchmod(descriptor, stat.S_IRUSR | stat.S_IWUSR)
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
