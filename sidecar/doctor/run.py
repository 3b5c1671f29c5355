"""Collect the facts and run every check. Nothing in the installation is changed."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from sidecar import __version__
from sidecar.config.build.config import Config
from sidecar.config.document import UpstreamSettings
from sidecar.core.units import Clock
from sidecar.doctor.checks import config as config_checks
from sidecar.doctor.checks import listeners as listener_checks
from sidecar.doctor.checks import store as store_checks
from sidecar.doctor.facts import Facts, NamedUpstream
from sidecar.doctor.findings import Finding, Named
from sidecar.doctor.probes.host import (
    Opener,
    files_facts,
    host_facts,
    key_file_facts,
    replica_facts,
    secrets_facts,
    store_facts,
)
from sidecar.doctor.probes.network import probe_bypass, running_facts, upstream_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What to examine, and how. `clock` gives Unix seconds; `deep` verifies the whole audit, however long."""

    config: Config
    environ: Mapping[str, str]
    clock: Clock
    open_store: Opener
    grace_seconds: float | None = None
    deep: bool = False


async def collect_facts(examination: Examination) -> Facts:
    """Run all probes."""
    config, now = examination.config, examination.clock.seconds()
    host, files = await asyncio.gather(
        asyncio.to_thread(host_facts, config.listen, examination.environ), asyncio.to_thread(files_facts, config)
    )
    every, running = await asyncio.gather(
        asyncio.gather(*(_upstream(one, examination, host.addresses) for one in config.every_upstream.values())),
        running_facts(config.ops),
    )
    default, *others = every
    return Facts(
        config=config,
        now=now,
        version=__version__,
        grace_seconds=examination.grace_seconds,
        files=files,
        host=host,
        secrets=secrets_facts(config, examination.environ),
        upstream=default.upstream,
        bypass=default.bypass,
        key_file=await asyncio.to_thread(key_file_facts, config, now, examination.environ),
        upstreams=dict(zip(config.upstreams, others, strict=True)),
        # Runs alone: anything beside it would distort the latencies.
        store=await store_facts(config, now, examination.open_store, deep=examination.deep),
        replica=await replica_facts(config),
        running=running,
    )


async def _upstream(settings: UpstreamSettings, examination: Examination, own: Iterable[str]) -> NamedUpstream:
    """own: this host's addresses."""
    config = replace(examination.config, upstream=settings)
    upstream, bypass = await asyncio.gather(upstream_facts(settings, examination.clock), probe_bypass(config, own))
    return NamedUpstream(upstream=upstream, bypass=bypass)


class Check(NamedTuple):
    """A named check. `run` is a pure function; it returns None if the check does not apply."""

    group: str
    name: str
    run: Callable[[Facts], Finding | None]


_UPSTREAM: Final = "Upstream"
CHECKS: Final = (
    Check(_UPSTREAM, "ways around", listener_checks.bypass),
    Check(_UPSTREAM, "loop", listener_checks.itself),
    Check(_UPSTREAM, "connection", listener_checks.connection),
    Check(_UPSTREAM, "certificate", listener_checks.certificate),
    Check(_UPSTREAM, "clock", listener_checks.clock),
    Check("Listeners", "data", listener_checks.data),
    Check("Listeners", "ops", listener_checks.ops),
    Check("Listeners", "admin", listener_checks.admin),
    Check("Listeners", "certificates", listener_checks.certificates),
    Check("Listeners", "open files", listener_checks.open_files),
    Check("Listeners", "event loop", listener_checks.loop),
    Check("Configuration", "changes", config_checks.changes),
    Check("Configuration", "file mode", config_checks.config_mode),
    Check("Configuration", "mode", config_checks.mode),
    Check("Configuration", "public routes", config_checks.public_routes),
    Check("Configuration", "probes", config_checks.probes),
    Check("Configuration", "key in query", config_checks.key_in_query),
    Check("Configuration", "trusted proxies", config_checks.trusted_proxies),
    Check("Configuration", "header limits", config_checks.header_limits),
    Check("Configuration", "time to end", config_checks.drain),
    Check("Configuration", "limiter", config_checks.limiter),
    Check("Secrets", "admin token", store_checks.admin_token),
    Check("Secrets", "pepper", store_checks.pepper),
    Check("Secrets", "previous pepper", store_checks.previous_pepper),
    Check("Secrets", "TLS keys", store_checks.key_files),
    Check("Key store", "file", store_checks.key_file),
    Check("Key store", "schema", store_checks.schema),
    Check("Key store", "file modes", store_checks.modes),
    Check("Key store", "folder", store_checks.folder),
    Check("Key store", "owner", store_checks.owner),
    Check("Key store", "disk", store_checks.disk),
    Check("Key store", "latency", store_checks.latency),
    Check("Key store", "replica", store_checks.replica),
    Check("Key store", "clock", store_checks.clock),
    Check("Key store", "audit", store_checks.audit),
    Check("Key store", "age of keys", store_checks.keys),
    Check("Running sidecar", "readiness", listener_checks.readiness),
    Check("Running sidecar", "writes", listener_checks.writes),
    Check("Running sidecar", "configuration", listener_checks.configuration),
    Check("Running sidecar", "version", listener_checks.program),
    Check("Running sidecar", "faults", listener_checks.faults),
)


async def examine(examination: Examination) -> Sequence[Named]:
    """Collect the facts and check them."""
    return run_checks(await collect_facts(examination))


def run_checks(facts: Facts) -> Sequence[Named]:
    """Return the findings of every check that applies, those of upstreams for each one."""
    parts = [(_UPSTREAM, _UPSTREAM, facts)]
    parts += [(_UPSTREAM, f"{_UPSTREAM} {name}", facts.of_upstream(name)) for name in facts.upstreams]
    parts += [(group, group, facts) for group in dict.fromkeys(check.group for check in CHECKS) if group != _UPSTREAM]
    return [
        Named(group=title, check=check.name, finding=finding)
        for group, title, known in parts
        for check in CHECKS
        if check.group == group and (finding := check.run(known)) is not None
    ]
