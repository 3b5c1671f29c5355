"""A sidecar process in front of a scripted upstream, and its memory."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sidecar.config.fields import Address
from tests.harness.running import Sidecar, StartSidecar
from tests.upstreams.scripted import Script, ScriptedUpstream
from tests.wire.proxy.wire import RawClient
from tests.wire.security.site import CONFIG

MIB = 1 << 20
GROWTH_BYTES = 16 * MIB
_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """The upstream's end, and clients at the other."""

    sidecar: Sidecar
    upstream: ScriptedUpstream

    async def client(self) -> RawClient:
        host, port = self.sidecar.data
        return await RawClient.connect(Address(host=host, port=port))


@asynccontextmanager
async def behind(
    start: StartSidecar, script: Script, *, settings: str = "", url: str | None = None, config: str = ""
) -> AsyncIterator[Behind]:
    """settings: of the upstream, such as `answer_timeout: 1s`. url: of another upstream than the script's.

    config: in place of the site's with these settings.
    """
    upstream = ScriptedUpstream(script)
    await upstream.start()
    try:
        url = url or f"http://127.0.0.1:{upstream.address.port}"
        yield Behind(sidecar=start(config or configured(settings), upstream_url=url), upstream=upstream)
    finally:
        await upstream.stop()


def configured(settings: str) -> str:
    """The site's configuration with settings of the upstream; an option gives its URL."""
    return CONFIG.replace("upstream: http://127.0.0.1:1", f"upstream: {{url: 'http://127.0.0.1:1', {settings}}}")


def forget_peak(sidecar: Sidecar) -> int:
    """Reset the peak of resident memory. Returns the current size in bytes."""
    Path(f"/proc/{sidecar.process.pid}/clear_refs").write_text("5")
    return peak(sidecar)


def peak(sidecar: Sidecar) -> int:
    found = _PEAK.search(Path(f"/proc/{sidecar.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
