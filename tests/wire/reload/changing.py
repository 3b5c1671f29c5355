"""A sidecar whose configuration file is changed while it runs."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.harness.running import Sidecar
from tests.harness.wire import Connection, Response

CONFIG = """\
listen: 127.0.0.1:0
ops: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
keys: {environments: {live: hv_live_, test: hv_test_}}
scopes: {read: Read}
quotas: {few: {limit: 3, per: 24h, window: sliding}}
routes:
  - GET /items/**: {scopes: [read]}
  - GET /few: {quotas: [few]}
  - GET /open: {public: true}
realm: before
reload: {interval: 50ms}
drain: {delay: 0s}
"""
CHANGED = CONFIG.replace("realm: before", "realm: after")


@dataclass(frozen=True, slots=True, kw_only=True)
class Changing:
    """`file` is the one that the sidecar reads."""

    sidecar: Sidecar
    file: Path

    def write(self, text: str | bytes) -> None:
        """Write the file in one step, as editors and Kubernetes do."""
        new = self.file.with_name("new")
        new.write_bytes(text.encode() if isinstance(text, str) else text)
        os.replace(new, self.file)

    def told(self, beginning: str, *, count: int = 1) -> list[str]:
        """The lines on stderr with this beginning, once there are `count`."""
        wanted = f"sidecar: config: {beginning}"
        seen = 0

        def enough(line: str) -> bool:
            nonlocal seen
            seen += line.startswith(wanted)
            return seen >= count

        stderr = self.sidecar.process.stderr
        assert stderr.wait_for(enough) is not None, stderr.all()
        return [line for line in stderr.all() if line.startswith(wanted)]

    def taken(self, text: str, *, count: int = 1) -> None:
        """Write it, and wait until it is in force. `count`: the number of loads since the start."""
        self.write(text)
        self.told(str(self.file), count=count)

    def hang_up(self) -> None:
        self.sidecar.process.signal(signal.SIGHUP)

    def realm(self) -> str:
        """The realm of the current configuration, as sent to a client."""
        challenge = self.sidecar.ask("GET", "/items/1").header("WWW-Authenticate")
        return challenge.partition('realm="')[2].partition('"')[0]

    def verbose(self) -> Response:
        with Connection(self.sidecar.ops) as connection:
            return connection.ask("GET", "/readyz?verbose")

    def reloads(self, result: str) -> float:
        return self.sidecar.metric(f'sidecar_config_reload_total{{result="{result}"}}')
