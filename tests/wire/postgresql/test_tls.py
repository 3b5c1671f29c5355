"""TLS to PostgreSQL and passwords, as in libpq: what is verified, and the errors."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, get_ident

import pytest

from sidecar.keys.ports import StoreUnavailable
from sidecar.store.postgresql.connection import connector
from sidecar.store.postgresql.passwords import passfile_of
from tests.harness.keys import run_cli
from tests.harness.postgresql import PostgresqlServer, running_postgresql
from tests.harness.running import StartSidecar
from tests.harness.tools import needed
from tests.harness.waiting import until
from tests.wire.postgresql.test_serving import CONFIG, status

PATIENCE_SECONDS = 5.0
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True, slots=True)
class TlsServer:
    """Its certificate names `localhost`; the role `guest` needs TLS, and `member` a client certificate."""

    server: PostgresqlServer
    files: Path

    def url(self, user: str, host: str, options: str) -> str:
        place = options.format(files=self.files)
        return f"postgresql://{user}@{host}:{self.server.port}/postgres?{place}"


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run([needed("openssl"), *arguments], check=True, capture_output=True, cwd=folder)


def _authority(folder: Path, name: str) -> None:
    _openssl(folder, "req", "-x509", *_KEY, "-keyout", f"{name}.key", "-subj", f"/CN={name}", "-out", f"{name}.crt")


def _certificate(folder: Path, name: str, subject: str, *, by: str, days: int = 2) -> None:
    _openssl(folder, "req", *_KEY, "-keyout", f"{name}.key", "-subj", f"/CN={subject}", "-out", f"{name}.csr")
    (folder / "names").write_text(f"subjectAltName=DNS:{subject}", encoding="ascii")
    signed = ("-CA", f"{by}.crt", "-CAkey", f"{by}.key", "-CAcreateserial", "-days", str(days), "-extfile", "names")
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.crt")


@pytest.fixture(scope="module")
def tls() -> Iterator[TlsServer]:
    with running_postgresql() as server:
        files = server.folder / "tls"
        files.mkdir(mode=0o755)
        server.folder.chmod(0o755)
        for name in ("ca", "stranger"):
            _authority(files, name)
        _certificate(files, "server", "localhost", by="ca")
        _certificate(files, "client", "member", by="ca")
        _certificate(files, "intruder", "member", by="stranger")
        server.give(files / "server.key")
        server.sql("CREATE ROLE guest LOGIN", "CREATE ROLE member LOGIN")
        server.let_in("hostssl all member all cert", "hostssl all guest all trust", "hostnossl all guest all reject")
        settings = {"ssl_cert_file": "server.crt", "ssl_key_file": "server.key", "ssl_ca_file": "ca.crt"}
        server.stop()
        server.start(ssl="on", **{name: str(files / file) for name, file in settings.items()})
        yield TlsServer(server, files)


CLIENT = "sslmode=verify-full&sslrootcert={files}/ca.crt&sslcert={files}/client.crt&sslkey={files}/client.key"
ENCRYPTED = {
    "prefer": ("guest", "127.0.0.1", "sslmode=prefer"),
    "no sslmode": ("guest", "127.0.0.1", ""),
    "require": ("guest", "127.0.0.1", "sslmode=require"),
    "require with the authority": ("guest", "127.0.0.1", "sslmode=require&sslrootcert={files}/ca.crt"),
    "verify-ca whatever the name": ("guest", "127.0.0.1", "sslmode=verify-ca&sslrootcert={files}/ca.crt"),
    "verify-full": ("guest", "localhost", "sslmode=verify-full&sslrootcert={files}/ca.crt"),
    "client certificate": ("member", "localhost", CLIENT),
}


@pytest.mark.parametrize("case", ENCRYPTED)
async def test_the_connection_is_encrypted(tls: TlsServer, case: str) -> None:
    connection = await connector(tls.url(*ENCRYPTED[case]), 1.0)()
    try:
        rows = await connection.fetch("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    finally:
        await connection.close()
    assert rows == [(True,)]


async def test_files_are_not_read_on_the_event_loop(tls: TlsServer, tmp_path: Path) -> None:
    """A pipe blocks its reader until the loop has turned, which it cannot do while reading itself."""
    pipe, is_read, goes_on = tmp_path / "ca.crt", asyncio.Event(), Event()
    os.mkfifo(pipe)
    loop = asyncio.get_running_loop()

    def write() -> bool:
        with pipe.open("wb") as file:  # Waits for the reader.
            loop.call_soon_threadsafe(is_read.set)
            in_time = goes_on.wait(PATIENCE_SECONDS)
            file.write((tls.files / "ca.crt").read_bytes())
        return in_time

    written = asyncio.ensure_future(asyncio.to_thread(write))
    url = tls.url("guest", "localhost", f"sslmode=verify-full&sslrootcert={pipe}")
    connecting = asyncio.ensure_future(connector(url, 1.0)())
    await is_read.wait()
    goes_on.set()
    connection = await connecting
    await connection.close()
    assert await written


async def test_sslmode_disable_encrypts_nothing(tls: TlsServer) -> None:
    connection = await connector(tls.url("postgres", "127.0.0.1", "sslmode=disable"), 1.0)()
    try:
        rows = await connection.fetch("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    finally:
        await connection.close()
    assert rows == [(False,)]


OTHER = "sslmode={mode}&sslrootcert={{files}}/stranger.crt"
INTRUDER = CLIENT.replace("client.", "intruder.")
REFUSED = {
    "without TLS where it is demanded": ("guest", "127.0.0.1", "sslmode=disable", "TLS: sslmode=require"),
    "another authority": ("guest", "localhost", OTHER.format(mode="verify-full"), "not signed by an authority"),
    "another authority, verify-ca": (
        "guest",
        "localhost",
        OTHER.format(mode="verify-ca"),
        "not signed by an authority",
    ),
    "another authority, require": ("guest", "localhost", OTHER.format(mode="require"), "not signed by an authority"),
    "another name": ("guest", "127.0.0.1", "sslmode=verify-full&sslrootcert={files}/ca.crt", "for another name"),
    "no authority": ("guest", "localhost", "sslmode=verify-full", "sslrootcert"),
    "a missing authority": ("guest", "localhost", "sslmode=verify-full&sslrootcert=/none", "sslrootcert"),
    "an authority that is none": ("guest", "localhost", "sslmode=verify-full&sslrootcert={files}/names", "sslrootcert"),
    "no client certificate": ("member", "localhost", "sslmode=require", "client certificate"),
    "a client certificate of another authority": ("member", "localhost", INTRUDER, "client certificate"),
    "a client key of another certificate": (
        "member",
        "localhost",
        CLIENT.replace("client.key", "intruder.key"),
        "TLS files",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_invalid_values_are_refused_with_the_reason(tls: TlsServer, case: str) -> None:
    *where, reason = REFUSED[case]
    with pytest.raises(StoreUnavailable, match=reason) as caught:
        await connector(tls.url(*where), 1.0)()
    assert len(str(caught.value).splitlines()) == 1


async def test_a_certificate_that_has_expired_is_refused_with_the_reason(tls: TlsServer, tmp_path: Path) -> None:
    """Uses its own server, because the shared one must keep its certificate."""
    for name in ("ca.crt", "ca.key"):
        (tmp_path / name).write_bytes((tls.files / name).read_bytes())
    _certificate(tmp_path, "old", "localhost", by="ca", days=0)
    with running_postgresql() as own:
        for name in ("old.crt", "old.key"):
            (own.folder / name).write_bytes((tmp_path / name).read_bytes())
        own.give(own.folder / "old.crt", own.folder / "old.key")
        own.stop()
        own.start(ssl="on", ssl_cert_file=str(own.folder / "old.crt"), ssl_key_file=str(own.folder / "old.key"))
        url = f"postgresql://postgres@localhost:{own.port}/postgres?sslmode=verify-ca&sslrootcert={tls.files}/ca.crt"
        with pytest.raises(StoreUnavailable, match="has expired"):
            await connector(url, 1.0)()


PLACES = ("url", "PGPASSWORD", "PGPASSWORD_FILE", "PGPASSFILE", "passfile", "home")


def _given(place: str, url: str, password: str, folder: Path) -> tuple[str, dict[str, str]]:
    """The URL and the environment that hold the password of the role `asked`."""
    file, list_ = folder / "password", folder / ".pgpass"
    file.write_text(f"{password}\n", encoding="ascii")
    list_.write_text(f"elsewhere:*:*:*:no\n*:*:*:asked:{password}\n", encoding="ascii")
    list_.chmod(0o600)
    own = url.replace("postgres@", "asked@")
    return {
        "url": (own.replace("asked@", f"asked:{password.replace('/', '%2F')}@"), {}),
        "PGPASSWORD": (own, {"PGPASSWORD": password}),
        "PGPASSWORD_FILE": (own, {"PGPASSWORD_FILE": str(file)}),
        "PGPASSFILE": (own, {"PGPASSFILE": str(list_)}),
        "passfile": (f"{own}?passfile={list_}", {}),
        "home": (own, {"HOME": str(folder)}),
    }[place]


@pytest.mark.parametrize("place", PLACES)
def test_a_password_is_read_from_every_libpq_source_and_never_shown(
    server: PostgresqlServer, url: str, tmp_path: Path, place: str
) -> None:
    server.ask_for_password("asked", "hunter2/")
    for password, told in (("hunter2/", "does not let this role"), ("hunter3/", "refuses the password")):
        store, environ = _given(place, url, password, tmp_path)
        done = run_cli("keys", "list", "--store", store, environ=environ)
        assert done.exit_code == 1 and told in done.output
        assert "hunter" not in done.output


async def test_the_file_of_passwords_is_not_read_on_the_event_loop(
    server: PostgresqlServer, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.ask_for_password("asked", "hunter2/")
    own, environ = _given("PGPASSFILE", url, "hunter3/", tmp_path)
    monkeypatch.setenv("PGPASSFILE", environ["PGPASSFILE"])
    readers: list[int] = []

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]) == environ["PGPASSFILE"]:
            readers.append(get_ident())

    sys.addaudithook(note)
    with pytest.raises(StoreUnavailable, match="refuses the password"):
        await connector(own, 1.0)()
    assert readers and get_ident() not in readers


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_file_of_passwords_that_others_may_read_is_left_to_asyncpg_which_warns(tmp_path: Path, mode: int) -> None:
    file = tmp_path / ".pgpass"
    file.write_text("*:*:*:*:secret\n", encoding="ascii")
    file.chmod(mode)
    assert passfile_of("postgresql://h/d", {"PGPASSFILE": str(file)}) is None
    file.chmod(0o600)
    assert passfile_of("postgresql://h/d", {"PGPASSFILE": str(file)}) == b"*:*:*:*:secret\n"
    assert passfile_of(f"postgresql://h/d?passfile={file}", {"PGPASSFILE": "/nowhere"}) == b"*:*:*:*:secret\n"
    assert passfile_of("postgresql://h/d", {"PGPASSFILE": str(tmp_path / "none")}) == b""
    assert passfile_of("postgresql://h/d", {"PGPASSFILE": str(tmp_path)}) in (None, b"")


def test_a_sidecar_serves_over_verified_tls_and_logs_no_password(tls: TlsServer, start_sidecar: StartSidecar) -> None:
    database = tls.server.database().rpartition("/")[2]
    url = tls.url("postgres:hunter2", "localhost", "sslmode=verify-full&sslrootcert={files}/ca.crt")
    sidecar = start_sidecar(CONFIG, store=url.replace("/postgres?", f"/{database}?"))
    key = sidecar.keys.issue(scopes=("read",))
    assert status(sidecar, key) == 200
    tls.server.sql(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
    tls.server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")  # noqa: S608 - a name of our own
    until(lambda: status(sidecar, key) == 503, within=5.0)
    told = sidecar.ready().body.decode() + "".join(sidecar.process.stderr.all())
    assert "hunter2" not in told and "key store" in told
