"""An installation without problems, for tests to break."""

from dataclasses import replace
from pathlib import Path

from sidecar.config.load import load
from sidecar.core.apikey import PLAIN
from sidecar.doctor.facts import (
    BypassProbe,
    CertificateFacts,
    DiskFacts,
    Facts,
    FileFacts,
    FilesFacts,
    HostFacts,
    Latency,
    ProcessFacts,
    RunningFacts,
    SecretsFacts,
    StoreFacts,
    UpstreamFacts,
)
from sidecar.doctor.findings import Finding
from sidecar.doctor.run import run_checks
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
    """Return facts without problems, for a configuration with the settings of `more`, which replace its own."""
    names = {line.partition(":")[0] for line in more.splitlines()}
    kept = [line for line in CONFIG.splitlines() if line.partition(":")[0] not in names]
    file = folder / "sidecar.yaml"
    file.write_text("\n".join([*kept, more, ""]), encoding="utf-8")
    config = load(str(file), environ=environ or {})
    process = ProcessFacts(pid=7, uid=1000, open_files=65_536)
    report = StoreReport(version=2, newest_version=2, journal="wal", newest_at=int(NOW - 60) * 1_000_000, active=3,
                     audit_rows=3, algorithms={PLAIN: 3})  # fmt: skip
    return Facts(
        config=config,
        now=NOW,
        version="1.2.3",
        grace_seconds=30.0,
        files=FilesFacts(
            config=FileFacts(path=str(file), mode=0o644, uid=0),
            config_alone=False,
            literal_secrets=0,
            store=(FileFacts(path="/var/lib/sidecar/keys.db", mode=0o600, uid=1000),),
            store_folder=FileFacts(path="/var/lib/sidecar", mode=0o700, uid=1000),
            disk=DiskFacts(kind="ext4", free=2**34, total=2**35),
            tls_keys=(FileFacts(path="/etc/sidecar/tls.key", mode=0o600, uid=1000),),
            certificates=(CertificateFacts(path="/etc/sidecar/tls.crt", begins_at=NOW - DAY, ends_at=NOW + 60 * DAY),),
            listener_tls="",
        ),
        host=HostFacts(in_kubernetes=False, addresses=("10.0.0.5",), uvloop=True, own=process, sidecar=process),
        secrets=SecretsFacts(
            admin_token_bits=None,
            pepper_bits=200.0,
            pepper_problem="",
            previous_algorithm=None,
            algorithms=frozenset({PLAIN}),
        ),
        upstream=UpstreamFacts(seconds=0.001, certificate_ends_at=NOW + 60 * DAY, clock_ahead=0.0),
        bypass=BypassProbe(location="loopback", tried=("10.0.0.5",)),
        store=StoreFacts(
            report=report,
            latencies=(Latency(operation="key lookup", median=0.0005, slowest=0.002),),
            audit=AuditState(rows=3, head="3:…"),
        ),
        running=RunningFacts(
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


def finding(facts: Facts, name: str) -> Finding:
    """Return the finding of the check `name` (`group: check`)."""
    [found] = [one.finding for one in run_checks(facts) if f"{one.group}: {one.check}" == name]
    return found


def with_report(facts: Facts, **changes: object) -> Facts:
    assert isinstance(facts.store, StoreFacts)
    return replace(facts, store=replace(facts.store, report=replace(facts.store.report, **changes)))  # type: ignore[arg-type]


def with_files(facts: Facts, **changes: object) -> Facts:
    return replace(facts, files=replace(facts.files, **changes))  # type: ignore[arg-type]
