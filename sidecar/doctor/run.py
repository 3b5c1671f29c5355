"""Everything that is to be judged, gathered at once. Nothing of the installation is changed."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from sidecar import __version__
from sidecar.config.settings import Config
from sidecar.doctor.facts import Seen
from sidecar.doctor.places import files_seen
from sidecar.doctor.probes.host import host_seen
from sidecar.doctor.probes.network import Clock, running_seen, upstream_seen, way_around
from sidecar.doctor.probes.store import Opener, store_seen
from sidecar.doctor.secret_weights import secrets_seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What to examine, and how. `clock` in Unix seconds; `grace_seconds`: as of Seen; `deep`: the whole audit."""

    config: Config
    environ: Mapping[str, str]
    clock: Clock
    open_store: Opener
    grace_seconds: float | None = None
    deep: bool = False


async def gather(asked: Examination) -> Seen:
    config, now = asked.config, asked.clock()
    host, files = await asyncio.gather(
        asyncio.to_thread(host_seen, config.listen, asked.environ), asyncio.to_thread(files_seen, config)
    )
    upstream, around, running = await asyncio.gather(
        upstream_seen(config.upstream, asked.clock), way_around(config, host.addresses), running_seen(config.ops)
    )
    return Seen(
        config=config,
        now=now,
        version=__version__,
        grace_seconds=asked.grace_seconds,
        files=files,
        host=host,
        secrets=secrets_seen(config, asked.environ),
        upstream=upstream,
        around=around,
        # On its own: what else goes on would be timed with it.
        store=await store_seen(config, now, asked.open_store, deep=asked.deep),
        running=running,
    )
