"""A PostgreSQL server of the tests' own, on a free loopback port and in a folder of its own."""

import atexit
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP
from typing import Any

from tests.harness.ports import free_port
from tests.harness.processes import STOP_SECONDS, Lines
from tests.harness.tools import needed

SUPERUSER = "postgres"
_SETTINGS = {
    "fsync": "off",  # A test needs no durability.
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "dynamic_shared_memory_type": "mmap",  # In its folder: of a killed one, nothing else would be removed.
    "autovacuum": "off",
    "log_min_messages": "log",  # It logs when it is ready.
}
_TRUSTING = "host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n"


class PostgresqlServer:
    """May be stopped and started again. Databases are made from a template, which takes some 50 ms."""

    def __init__(self, folder: Path, standby_of: "PostgresqlServer | None" = None) -> None:
        self.folder, self._data = folder, folder / "data"
        self._bin = _programs()
        self._user = other_user()
        self._process: subprocess.Popen[str] | None = None
        self._numbers = itertools.count(1)
        self.port = 0
        if self._user is not None:
            os.chown(folder, pwd.getpwnam(self._user).pw_uid, -1)
        if standby_of is not None:
            line = ["pg_basebackup", "-D", str(self._data), "-h", "127.0.0.1", "-p", str(standby_of.port)]
            self.run([*line, "-U", SUPERUSER, "-R", "-X", "stream", "-c", "fast", "--no-sync"])
            return
        shutil.copytree(_template(), self._data)
        self._own()

    def _own(self) -> None:
        """PostgreSQL refuses data that belongs to others, or that others can read."""
        self._data.chmod(0o700)
        if self._user is not None:
            uid = pwd.getpwnam(self._user).pw_uid
            for path in (self._data, *self._data.rglob("*")):
                os.chown(path, uid, -1)

    def start(self, **settings: str) -> None:
        """On the port of before, if there was one. `settings` are PostgreSQL's own."""
        given = [f"--{name}={value}" for name, value in {**_SETTINGS, **settings}.items()]
        for _ in range(10):
            port = self.port or free_port()
            line = [str(self._bin / "postgres"), "-D", str(self._data), "-p", str(port), *given]
            self._process = subprocess.Popen(
                line, stderr=subprocess.PIPE, text=True, cwd="/", user=self._user, process_group=0
            )
            assert self._process.stderr is not None
            self._told = Lines(self._process.stderr)
            if self._told.wait_for(lambda line: "ready to accept" in line) is not None:
                self.port = port
                return
            self.kill()
        raise AssertionError("\n".join(self._told.all()))

    def stop(self, signal: int = SIGINT) -> None:
        """SIGINT ends all connections first."""
        if self._process is not None:
            self._process.send_signal(signal)
            self._process.wait(STOP_SECONDS)
            self._told.join()
            self._process = None

    def kill(self) -> None:
        """At the end of the tests, when no children may remain."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, SIGKILL)
            self._process.wait(STOP_SECONDS)
            self._told.join()
            self._process = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Its processes are stopped meanwhile: connections stay open, and nothing responds."""
        assert self._process is not None
        children = subprocess.run(["pgrep", "-P", str(self._process.pid)], capture_output=True, text=True, check=False)
        pids = [self._process.pid, *map(int, children.stdout.split())]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, SIGCONT)

    @contextmanager
    def down(self, how: str) -> Iterator[None]:
        """`stopped`, or `paused`."""
        if how == "paused":
            with self.paused():
                yield
            return
        self.stop()
        yield
        self.start()

    def url(self, database: str, *, user: str = SUPERUSER) -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def database(self, *, template: str = "template0") -> str:
        """The URL of a new database."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def sql(self, *statements: str, url: str = "", user: str = SUPERUSER) -> list[tuple[str, ...]]:
        """Rows of text, of all statements."""
        line = [str(self._bin / "psql"), "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-F", "\x1f"]
        given = list(itertools.chain.from_iterable(("-c", statement) for statement in statements))
        told = self.run([*line, *given, url or self.url("postgres", user=user)])
        return [tuple(row.split("\x1f")) for row in told.splitlines()]

    def file(self, path: Path, *, url: str, **variables: str) -> None:
        """Run a file of SQL by psql."""
        given = [f"--set={name}={value}" for name, value in variables.items()]
        self.run(
            [str(self._bin / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", *given, "-f", "-", url], path.read_text()
        )

    def ask_for_password(self, user: str, password: str) -> None:
        """Make this role, and ask it for its password (SCRAM)."""
        made = f"DO $$ BEGIN CREATE ROLE {user} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
        self.sql(made, f"ALTER ROLE {user} PASSWORD '{password}'")
        self.let_in(f"host all {user} 127.0.0.1/32 scram-sha-256")

    def let_in(self, *rules: str) -> None:
        """Authentication: lines of pg_hba.conf. All others are trusted."""
        text = "".join(f"{rule}\n" for rule in rules) + _TRUSTING
        (self._data / "pg_hba.conf").write_text(text, encoding="ascii")
        self.sql("SELECT pg_reload_conf()")

    def give(self, *paths: Path) -> None:
        """Files that it reads, and nobody else: keys."""
        for path in paths:
            path.chmod(0o600)
            if self._user is not None:
                os.chown(path, pwd.getpwnam(self._user).pw_uid, -1)

    def run(self, line: Sequence[str], text: str | None = None) -> str:
        """One of PostgreSQL's programs, and what it prints."""
        return _run(line, text)


@contextmanager
def running_postgresql(standby_of: PostgresqlServer | None = None, **settings: str) -> Iterator[PostgresqlServer]:
    """A server, until the end. standby_of: the primary whose changes it replays (streaming replication)."""
    folder = Path(tempfile.mkdtemp(prefix="sidecar-postgresql-"))
    server: PostgresqlServer | None = None
    try:
        server = PostgresqlServer(folder, standby_of)
        server.start(**settings)
        yield server
    finally:
        if server is not None:
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@cache
def _template() -> Path:
    """Data of a new server, made once for all of this process: initdb costs ten times what a copy does."""
    folder = Path(tempfile.mkdtemp(prefix="sidecar-postgresql-template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if (user := other_user()) is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    line = ["initdb", "-D", str(folder / "data"), "-U", SUPERUSER, "-E", "UTF8", "--locale=C.UTF-8", "-A", "trust"]
    _run([*line, "--no-sync", "--no-instructions"])
    return folder / "data"


def _run(line: Sequence[str], text: str | None = None) -> str:
    program = str(_programs() / line[0]) if "/" not in line[0] else line[0]
    done = subprocess.run(
        [program, *line[1:]], input=text, capture_output=True, text=True, check=False, cwd="/", user=other_user()
    )
    if done.returncode != 0:
        raise AssertionError(f"{line[0]}: {done.stderr}")
    return done.stdout


def _programs() -> Path:
    """Debian keeps them away from PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else Path(needed("initdb")).parent


def other_user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    known: Any = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)
