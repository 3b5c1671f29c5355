"""Every check, in the order in which it is told."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from sidecar.doctor import judge_config, judge_listeners, judge_running, judge_secrets, judge_store, judge_upstream
from sidecar.doctor.facts import Seen
from sidecar.doctor.report import Finding, Named
from sidecar.doctor.run import Examination, gather


class Check(NamedTuple):
    """`judge` is a pure function; None where there is nothing to look at."""

    group: str
    name: str
    judge: Callable[[Seen], Finding | None]


CHECKS: Final = (
    Check("Upstream", "ways around", judge_upstream.around),
    Check("Upstream", "connection", judge_upstream.connection),
    Check("Upstream", "certificate", judge_upstream.certificate),
    Check("Upstream", "clock", judge_upstream.clock),
    Check("Listeners", "data", judge_listeners.data),
    Check("Listeners", "ops", judge_listeners.ops),
    Check("Listeners", "admin", judge_listeners.admin),
    Check("Listeners", "certificates", judge_listeners.certificates),
    Check("Listeners", "open files", judge_listeners.open_files),
    Check("Listeners", "event loop", judge_listeners.loop),
    Check("Configuration", "changes", judge_config.changes),
    Check("Configuration", "file mode", judge_config.config_mode),
    Check("Configuration", "public routes", judge_config.public_routes),
    Check("Configuration", "probes", judge_config.probes),
    Check("Configuration", "key in query", judge_config.key_in_query),
    Check("Configuration", "trusted proxies", judge_config.trusted_proxies),
    Check("Configuration", "header limits", judge_config.header_limits),
    Check("Configuration", "time to end", judge_config.ending),
    Check("Configuration", "limiter", judge_config.limiter),
    Check("Secrets", "admin token", judge_secrets.admin_token),
    Check("Secrets", "pepper", judge_secrets.pepper),
    Check("Secrets", "previous pepper", judge_secrets.previous_pepper),
    Check("Secrets", "TLS keys", judge_secrets.key_files),
    Check("Key store", "schema", judge_store.schema),
    Check("Key store", "file modes", judge_store.modes),
    Check("Key store", "folder", judge_store.folder),
    Check("Key store", "owner", judge_store.owner),
    Check("Key store", "disk", judge_store.disk),
    Check("Key store", "latency", judge_store.latency),
    Check("Key store", "clock", judge_store.clock),
    Check("Key store", "audit", judge_store.audit),
    Check("Key store", "age of keys", judge_store.keys),
    Check("Running sidecar", "readiness", judge_running.readiness),
    Check("Running sidecar", "configuration", judge_running.configuration),
    Check("Running sidecar", "version", judge_running.program),
    Check("Running sidecar", "faults", judge_running.faults),
)


async def examine(asked: Examination) -> Sequence[Named]:
    """Look, and judge."""
    return judged(await gather(asked))


def judged(seen: Seen) -> Sequence[Named]:
    """What every check that has something to look at says."""
    return [
        Named(group=check.group, check=check.name, finding=finding)
        for check in CHECKS
        if (finding := check.judge(seen)) is not None
    ]
