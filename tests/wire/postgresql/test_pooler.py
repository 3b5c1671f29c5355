"""PgBouncer in front of the store: works in session mode, and is refused if it mixes sessions."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.harness.keys import Keys, run_cli
from tests.harness.ports import comes_to_listen, free_port
from tests.harness.postgresql import PostgresqlServer, other_user
from tests.harness.processes import STOP_SECONDS
from tests.harness.running import StartSidecar
from tests.harness.tools import needed
from tests.harness.waiting import until
from tests.wire.postgresql.test_serving import CONFIG, status

SETTINGS = """
[databases]
* = host=127.0.0.1 port={server} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
"""


@contextmanager
def pooled(server: PostgresqlServer, url: str, mode: str) -> Iterator[str]:
    """The URL of the same database behind PgBouncer."""
    port = free_port()
    text = SETTINGS.format(server=server.port, port=port, mode=mode)
    program = needed("pgbouncer")
    settings = server.folder / "pgbouncer.ini"  # A folder that the other user can read.
    settings.write_text(text, encoding="ascii")
    settings.chmod(0o644)
    process = subprocess.Popen([program, "-q", str(settings)], user=other_user(), cwd="/", stderr=subprocess.DEVNULL)
    try:
        assert comes_to_listen(process, port)
        yield url.replace(f":{server.port}/", f":{port}/")
    finally:
        process.kill()
        process.wait(STOP_SECONDS)


def test_in_session_mode_changes_are_announced(server: PostgresqlServer, url: str, start_sidecar: StartSidecar) -> None:
    with pooled(server, url, "session") as behind:
        sidecar = start_sidecar(CONFIG, store=behind)
        key = sidecar.keys.issue(scopes=("read",))
        assert status(sidecar, key) == 200
        assert Keys(sidecar.keys.config, url).run("disable", key.id).exit_code == 0
        until(lambda: status(sidecar, key) == 401, within=1.0)
        assert sidecar.stop() == 0


@pytest.mark.parametrize(
    "mode", ["transaction", "transaction\ndefault_pool_size = 1", "session\ndefault_pool_size = 1"]
)
def test_mixed_or_single_sessions_prevent_the_start(server: PostgresqlServer, url: str, mode: str) -> None:
    with pooled(server, url, mode) as behind:
        done = run_cli("keys", "list", "--store", behind)
        assert done.exit_code == 1
        assert "session mode" in done.output
