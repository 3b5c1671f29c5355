"""Another process that holds locks of a store."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# The locks of the index are the bytes 120 to 127: to write, checkpoint, recover, and to read. The index is blank while
# SQLite recovers the log, with the first three locks held.
_LOCKER = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, int(sys.argv[2]), 120)
    if sys.argv[3:]:
        file.write(bytes(96))
        file.flush()
    print("locked", flush=True)
    sys.stdin.read()
"""
WRITER, RECOVERY, EVERYBODY = ("1",), ("3", "blank"), ("8",)


@contextmanager
def locked(path: str, locks: Sequence[str]) -> Iterator[None]:
    """Another process locks out writers, or everyone, from the store."""
    command = [sys.executable, "-c", _LOCKER, path + "-shm", *locks]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as locker:
        assert locker.stdout is not None
        assert locker.stdout.readline() == b"locked\n"
        yield
        locker.communicate()
