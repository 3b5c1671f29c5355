"""An installation that nothing is wrong with, to be spoilt by tests."""

from dataclasses import replace
from pathlib import Path

from sidecar.config.load import load
from sidecar.core.apikey import PLAIN
from sidecar.doctor.facts import (
    BypassProbe,
    CertificateFacts,
    DiskSeen,
    Facts,
    FileFacts,
    FilesSeen,
    HostFacts,
    Latency,
    ProcessSeen,
    RunningSeen,
    SecretsSeen,
    StoreSeen,
    UpstreamSeen,
)
from sidecar.doctor.report import Finding
from sidecar.doctor.run import judged
from sidecar.keys.ports import AuditState
from sidecar.store.sqlite.inspect import StoreReport

NOW = 1_800_000_000.0
DAY = 86_400.0
CONFIG = """
listen: 127.0.0.1:8080
ops: 127.0.0.1:9090
upstream: http://127.0.0.1:8000
store: sqlite:///var/lib/sidecar/keys.db
keys: {environments: {live: acme_}, max_age: 90d}
routes: [GET /v1/**: {}]
"""


def installation(folder: Path, more: str = "", *, environ: dict[str, str] | None = None) -> Facts:
    """All is well, on a configuration with `more` in it (a setting that is there already is replaced)."""
    names = {line.partition(":")[0] for line in more.splitlines()}
    kept = [line for line in CONFIG.splitlines() if line.partition(":")[0] not in names]
    file = folder / "sidecar.yaml"
    file.write_text("\n".join([*kept, more, ""]), encoding="utf-8")
    config = load(str(file), environ=environ or {})
    process = ProcessSeen(pid=7, uid=1000, open_files=65_536)
    look = StoreReport(version=2, newest_version=2, journal="wal", newest_at=int(NOW - 60) * 1_000_000, active=3,
                     audit_rows=3, algorithms={PLAIN: 3})  # fmt: skip
    return Facts(
        config=config,
        now=NOW,
        version="1.2.3",
        grace_seconds=30.0,
        files=FilesSeen(
            config=FileFacts(path=str(file), mode=0o644, uid=0),
            config_alone=False,
            literal_secrets=0,
            store=(FileFacts(path="/var/lib/sidecar/keys.db", mode=0o600, uid=1000),),
            store_folder=FileFacts(path="/var/lib/sidecar", mode=0o700, uid=1000),
            disk=DiskSeen(kind="ext4", free=2**34, total=2**35),
            tls_keys=(FileFacts(path="/etc/sidecar/tls.key", mode=0o600, uid=1000),),
            certificates=(CertificateFacts(path="/etc/sidecar/tls.crt", begins_at=NOW - DAY, ends_at=NOW + 60 * DAY),),
            listener_tls="",
        ),
        host=HostFacts(in_kubernetes=False, addresses=("10.0.0.5",), uvloop=True, own=process, sidecar=process),
        secrets=SecretsSeen(
            admin_token_bits=None,
            pepper_bits=200.0,
            pepper_problem="",
            previous_algorithm=None,
            algorithms=frozenset({PLAIN}),
        ),
        upstream=UpstreamSeen(seconds=0.001, certificate_ends_at=NOW + 60 * DAY, clock_ahead=0.0),
        around=BypassProbe(location="loopback", tried=("10.0.0.5",)),
        store=StoreSeen(
            look=look,
            latencies=(Latency(operation="key looked up", median=0.0005, slowest=0.002),),
            audit=AuditState(rows=3, head="3:…"),
        ),
        running=RunningSeen(
            seconds=0.002,
            ready=True,
            lines=("store: ok", "config: ok"),
            metrics={
                f'sidecar_config_info{{sha256="{config.sha256}"}}': 1.0,
                "sidecar_config_last_reload_successful": 1.0,
                'sidecar_build_info{python="3.11.2",version="1.2.3"}': 1.0,
                'sidecar_background_failures_total{reason="internal"}': 0.0,
            },
        ),
    )


def finding(seen: Facts, name: str) -> Finding:
    """What the check `name` (`group: check`) says."""
    [found] = [one.finding for one in judged(seen) if f"{one.group}: {one.check}" == name]
    return found


def with_look(seen: Facts, **changes: object) -> Facts:
    assert isinstance(seen.store, StoreSeen)
    return replace(seen, store=replace(seen.store, look=replace(seen.store.look, **changes)))  # type: ignore[arg-type]


def with_files(seen: Facts, **changes: object) -> Facts:
    return replace(seen, files=replace(seen.files, **changes))  # type: ignore[arg-type]
