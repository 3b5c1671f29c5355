"""The sidecar as a real process in front of a real upstream."""

import json
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from tests.harness.forks import ForkedProcess, must_start_anew
from tests.harness.keys import IssuedKey, Keys
from tests.harness.processes import ROOT, Process, clean_environ, python
from tests.harness.recording import Upstream
from tests.harness.wire import Address, Connection, Fields, Response, exchange

EXAMPLES = ROOT / "deploy" / "examples"
_LISTENER = re.compile(r"sidecar: (\w+) listener on (.+):(\d+)")


class Sidecar:
    """A running `sidecar serve`. Its keys are managed through the command line, as an operator would."""

    def __init__(self, process: Process, keys: Keys, listeners: Mapping[str, Address]) -> None:
        self.process = process
        self.keys = keys
        self.data = listeners["data"]
        self.ops = listeners["ops"]

    def connect(self, *, source: str = "") -> Connection:
        """A keep-alive connection to the data listener; `source` as in Connection."""
        return Connection(self.data, source=source)

    def ask(
        self,
        method: str,
        target: str,
        headers: Fields = (),
        *,
        key: IssuedKey | str | None = None,
        body: bytes = b"",
        source: str = "",
    ) -> Response:
        """One request on its own connection; `key` as a Bearer credential."""
        text = key.text if isinstance(key, IssuedKey) else key
        credential = () if text is None else (("Authorization", f"Bearer {text}"),)
        with self.connect(source=source) as connection:
            return connection.ask(method, target, (*credential, *headers), body)

    def exchange(self, raw: bytes, *, head_only: bool = False) -> Response:
        """Exact bytes on a connection of their own, and the first answer."""
        return exchange(self.data, raw, head_only=head_only)

    def ready(self) -> Response:
        """The response of `/readyz`."""
        with Connection(self.ops) as connection:
            return connection.ask("GET", "/readyz")

    def metrics(self) -> str:
        with Connection(self.ops) as connection:
            return connection.ask("GET", "/metrics").body.decode()

    def metric(self, sample: str) -> float:
        """The value of one sample, named with its labels as in the exposition; 0 where it is not there."""
        values = [line.rpartition(" ") for line in self.metrics().splitlines()]
        return next((float(value) for name, _, value in values if name == sample), 0.0)

    def logged(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first access log line that is `wanted`; waits for it."""
        line = self.process.stdout.wait_for(lambda line: wanted(json.loads(line)))
        assert line is not None, f"no such line among {self.process.stdout.all()[-10:]}"
        found: dict[str, Any] = json.loads(line)
        return found

    def stop(self) -> int:
        """SIGINT, which ends without waiting for balancers; the exit status. What was gathered is written then."""
        return self.process.stop(signal.SIGINT)


class StartSidecar(Protocol):
    """Starts a sidecar; it is stopped when the fixture's scope ends."""

    def __call__(
        self,
        config: Path | str,
        *,
        store: Path | str | None = None,
        upstream_url: str | None = None,
        environ: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> Sidecar: ...


def starter(stack: ExitStack, upstream: Upstream, make_folder: Callable[[], Path]) -> StartSidecar:
    """What the fixtures provide: sidecars in front of `upstream`, each with its own store unless one is given."""

    def start(
        config: Path | str,
        *,
        store: Path | str | None = None,
        upstream_url: str | None = None,
        environ: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> Sidecar:
        """config: a file, or the text of one."""
        folder = make_folder()
        if isinstance(config, str):
            written, config = config, folder / "sidecar.yaml"
            config.write_text(written, encoding="utf-8")
        keys = Keys(config, store or folder / "keys.db", dict(environ or {}))
        if isinstance(store, str) or not keys.store.exists():
            keys.make_store("the key that makes the store")
        arguments = ["-c", str(config), "--store", keys.url, "--upstream", upstream_url or upstream.url]
        return start_sidecar(stack, keys, [*arguments, *options], environ or {})

    return start


def start_sidecar(stack: ExitStack, keys: Keys, arguments: Sequence[str], environ: Mapping[str, str]) -> Sidecar:
    """The process, once both of its listeners are bound; raises with its standard error when it ends before."""
    anywhere = ["--listen", "127.0.0.1:0", "--ops", "127.0.0.1:0"]
    command, whole = ["serve", *arguments, *anywhere], clean_environ(**environ)
    process = Process(
        python(["sidecar", *command], whole) if must_start_anew(environ) else ForkedProcess(command, whole)
    )
    stack.callback(process.stop, signal.SIGINT)
    listeners = {}
    for name in ("data", "ops"):
        line = process.stderr.wait_for(lambda line, name=name: line.startswith(f"sidecar: {name} listener on "))  # type: ignore[misc]
        if line is None:
            raise process.failure()
        found = _LISTENER.fullmatch(line)
        assert found, f"not as agreed: {line}"
        listeners[name] = (found[2], int(found[3]))
    return Sidecar(process, keys, listeners)
