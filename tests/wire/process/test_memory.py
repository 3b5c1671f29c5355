"""Whether others can read what is in the process's memory: keys of requests, and secrets."""

import ctypes
import os
import resource
import tempfile
from pathlib import Path

from tests.harness.running import StartSidecar
from tests.wire.process.test_background_work import CONFIG

_NOBODY = 65534


def core_limit(pid: int) -> int:
    return resource.prlimit(pid, resource.RLIMIT_CORE)[0]


def is_closed_to_its_own_user(file: str) -> bool:
    """Whether only root may read the file, by its owner and mode: tests may run as root, who may read all."""
    return os.stat(file).st_uid == 0


def test_a_crash_writes_no_memory_unless_the_configuration_says_so(start_sidecar: StartSidecar) -> None:
    """Less than a page means no dump, and a limit of one byte keeps the kernel from piping one (fs/coredump.c)."""
    kept = start_sidecar(CONFIG + "process: {core_dumps: true}\n")
    assert core_limit(start_sidecar(CONFIG).process.pid) in (0, 1)
    assert core_limit(kept.process.pid) == resource.getrlimit(resource.RLIMIT_CORE)[0]


def test_a_sidecar_that_is_not_dumpable_serves_and_watches_its_store(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG + "process: {dumpable: false}\n")
    key = sidecar.keys.issue(scopes=("read",))
    assert sidecar.ask("GET", "/items/1", key=key).status == 200
    assert is_closed_to_its_own_user(f"/proc/{sidecar.process.pid}/environ")
    sidecar.keys.run("revoke", key.id)
    assert sidecar.ask("GET", "/items/1", key=key).status == 401


def test_its_own_files_of_proc_stay_open_to_a_process_that_is_not_dumpable() -> None:
    """What the sidecar reads about itself: its open files and its mounts."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        seen = b"no"
        try:
            if os.getuid() == 0:
                os.setuid(_NOBODY)
            ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
            if is_closed_to_its_own_user(f"/proc/{os.getpid()}/environ") and os.listdir("/proc/self/fd"):
                with tempfile.TemporaryFile() as own:
                    os.close(os.open(f"/dev/fd/{own.fileno()}", os.O_RDWR))
                seen = b"yes" if Path("/proc/self/mountinfo").read_text() else b"no"
        finally:
            os.write(writer, seen)
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, "rb") as told:
        assert told.read() == b"yes"
