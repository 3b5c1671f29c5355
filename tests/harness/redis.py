"""Redis servers for tests: started on a free port, spoken to by hand, stopped, paused and killed."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from tests.harness.ports import comes_to_listen, free_port
from tests.harness.tools import needed

CALL_SECONDS = 10.0


class RedisServer:
    """One server with its data in `folder`; a context, at whose end it is gone. options: as in redis.conf.

    program: what stands before them, such as a file of options.
    """

    def __init__(self, folder: Path, *options: str, port: int = 0, program: tuple[str, ...] = ()) -> None:
        self.port, self.socket = port, folder / "redis.sock"
        """The port is found at the first start, unless it is given."""
        self._folder, self._options, self._program = folder, options, program
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "RedisServer":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """On the port of before, if there was one."""
        for _ in range(10):
            port = self.port or free_port()
            if self._comes_up(port):
                self.port = port
                return
            self.kill()
            if self.port:
                break
        raise AssertionError((self._folder / "redis.log").read_text())

    def _comes_up(self, port: int) -> bool:
        """A node of a Cluster listens on another port as well, 10000 above, which may be in use."""
        command = [needed("redis-server"), *self._program, "--port", str(port), "--bind", "127.0.0.1"]
        command += ["--save", ""] if not self._program else []
        command += ["--unixsocket", str(self.socket), "--dir", str(self._folder), "--daemonize", "no", *self._options]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        return comes_to_listen(self._process, port) and self._answers(port)

    def _answers(self, port: int) -> bool:
        """One whose second port is in use ends only after the first one listens, and answers nothing."""
        try:
            with socket.create_connection(("127.0.0.1", port), CALL_SECONDS) as plain:
                plain.sendall(packed("PING"))
                return plain.recv(100) != b""
        except ConnectionError:
            return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It keeps its connections and answers nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def call(self, *words: str) -> bytes:
        """The reply to one command, as it stands on the wire."""
        with socket.create_connection(("127.0.0.1", self.port), CALL_SECONDS) as plain:
            plain.sendall(packed(*words))
            return plain.recv(1 << 20)


class Clock:
    """A connection that is kept, to set what a test's script takes for the time."""

    def __init__(self, server: RedisServer, key: str) -> None:
        self._key = key
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(server.socket))

    def set(self, now: float) -> None:
        micros = round(now * 1_000_000)
        self._connection.sendall(packed("SET", self._key, f"{micros // 1_000_000} {micros % 1_000_000}"))
        assert self._connection.recv(100) == b"+OK\r\n"

    def close(self) -> None:
        self._connection.close()


def packed(*words: str) -> bytes:
    """A command as the protocol has it."""
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
