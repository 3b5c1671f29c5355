"""Sidecars that start quickly: forked from a process that has imported everything, which is most of what a start costs.

Run as `python -m tests.harness.forks FD`, where FD is a socket. Each message asks for one process: `{"arguments": …,
"environ": …, "folder": …, "files": [soft, hard]}` with the descriptors of its stdin, of its stdout, of its stderr, and
of a socket that receives its pid and, at its end, its exit status. forked.py in this folder does so from a shell.
"""

import atexit
import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any, NoReturn

from tests.harness import forked

_ROOT = Path(__file__).resolve().parents[2]
_MOST_BYTES = 1 << 20


_READ_AT_START = ("PYTHON", "LD_")


def must_start_anew(environ: Mapping[str, str]) -> bool:
    """Whether some of `environ` is read before any of our code runs."""
    return any(name.startswith(_READ_AT_START) for name in environ)


class ForkedProcess:
    """As much of `subprocess.Popen` as a Process needs."""

    def __init__(self, arguments: Sequence[str], environ: Mapping[str, str], *, folder: Path = _ROOT) -> None:
        """arguments: of `sidecar`."""
        out, err, (ours, its) = os.pipe(), os.pipe(), socket.socketpair()
        asked = {"arguments": list(arguments), "environ": dict(environ), "folder": str(folder), "files": None}
        nothing = os.open(os.devnull, os.O_RDONLY)
        socket.send_fds(server(), [json.dumps(asked).encode()], [nothing, out[1], err[1], its.fileno()])
        os.close(nothing)
        os.close(out[1])
        os.close(err[1])
        its.close()
        self.stdout, self.stderr = (os.fdopen(end, encoding="utf-8") for end in (out[0], err[0]))
        self._status = ours
        self.pid = int.from_bytes(ours.recv(8), "big")
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # It may have ended by itself.
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal; raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._status.settimeout(timeout)
            try:
                self.returncode = int.from_bytes(self._status.recv(8), "big", signed=True)
            except TimeoutError:
                raise subprocess.TimeoutExpired("sidecar", timeout or 0) from None
            self._status.close()
        return self.returncode


def command(*words: str) -> list[str]:
    """What a shell runs for `sidecar WORDS`; it must be handed the descriptor of `server()`."""
    return [sys.executable, "-IS", forked.__file__, str(server().fileno()), *words]


@cache
def server() -> socket.socket:
    """The server's socket, for the lifetime of this process."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for each in (ours, its):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST_BYTES)
    arguments = [sys.executable, "-m", "tests.harness.forks", str(its.fileno())]
    process = subprocess.Popen(arguments, cwd=_ROOT, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL)
    its.close()

    def stop() -> None:
        ours.close()
        process.wait()

    atexit.register(stop)
    return ours


def _serve(asked: socket.socket) -> None:
    _import_everything()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, _MOST_BYTES, 4)
        if not message:
            return
        if os.fork() == 0:
            asked.close()
            _watch(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _import_everything() -> None:
    import sidecar
    from sidecar.admin.web.formatting import environment

    for module in walk_packages(sidecar.__path__, "sidecar."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    import_module("uvloop")
    for name in environment().list_templates():
        environment().get_template(name)  # What is compiled is kept, and that takes as long as many a test.
    gc.collect()
    gc.freeze()


def _watch(asked: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Fork again, and report the child's end, as its parent, which the child must not outlive unnoticed."""
    *streams, teller = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(teller)
        _become_sidecar(asked, streams)
    for stream in streams:
        os.close(stream)
    os.write(teller, pid.to_bytes(8, "big"))
    _, status = os.waitpid(pid, 0)
    os.write(teller, os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))
    os._exit(0)


def _become_sidecar(asked: dict[str, Any], streams: list[int]) -> NoReturn:
    from sidecar.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(asked["folder"])
    if asked["files"]:
        resource.setrlimit(resource.RLIMIT_NOFILE, tuple(asked["files"]))
    os.environ.clear()
    os.environ.update(asked["environ"])
    status: object = 1
    try:
        main(args=asked["arguments"], prog_name="sidecar")
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
