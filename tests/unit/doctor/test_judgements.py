"""Each check: what is well, what is a warning, what is a problem, and what could not be looked at."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.config.fields import Address
from sidecar.doctor.facts import (
    BypassProbe,
    CertificateFacts,
    DiskSeen,
    Facts,
    FileFacts,
    Latency,
    ProcessSeen,
    StoreSeen,
    Unknown,
    UpstreamSeen,
)
from sidecar.doctor.report import Severity
from sidecar.doctor.run import judged
from tests.unit.doctor.installations import DAY, NOW, finding, installation, with_files, with_look

OK, WARNING, PROBLEM, UNCHECKED = Severity.OK, Severity.WARNING, Severity.PROBLEM, Severity.UNCHECKED
Spoil = Callable[[Facts], Facts]
NOBODY = Unknown(reason="no word")


def test_a_sound_installation_has_nothing_to_mend(tmp_path: Path) -> None:
    found = judged(installation(tmp_path))
    assert {one.finding.severity for one in found} == {OK}
    assert len(found) > 25


def test_whatever_is_not_well_says_why_and_what_to_do(tmp_path: Path) -> None:
    for _, spoil, _ in SPOILT:
        for one in judged(spoil(installation(tmp_path))):
            if one.finding.severity in (WARNING, PROBLEM):
                assert one.finding.why and one.finding.do, one


CONFIGURED = [
    ("listen: 0.0.0.0:8080", "Listeners: data", WARNING, "without TLS"),
    ("listen: 0.0.0.0:8080\ntrusted_proxies: [10.0.0.0/8]", "Listeners: data", OK, "behind the trusted proxies"),
    ("tls: {certificate: /c, key: /k}\nlisten: 0.0.0.0:8080", "Listeners: data", OK, "with TLS"),
    ("ops: 0.0.0.0:9090", "Listeners: ops", WARNING, "open to the network"),
    ("keys: {environments: {live: a_}, from: [{query: api_key}]}", "Configuration: key in query", WARNING, "api_key"),
    ("trusted_proxies: [0.0.0.0/0]", "Configuration: trusted proxies", PROBLEM, "0.0.0.0/0"),
    ('trusted_proxies: ["::/0"]', "Configuration: trusted proxies", PROBLEM, "::/0"),
    ("trusted_proxies: [10.0.0.0/7]", "Configuration: trusted proxies", WARNING, "10.0.0.0/7"),
    ("trusted_proxies: [10.0.0.0/8]", "Configuration: trusted proxies", OK, "10.0.0.0/8"),
    ("limits: {head: 16KiB}", "Configuration: header limits", OK, "16 KiB"),
    ("limits: {head: 16KiB}\ntrusted_proxies: [10.0.0.1]", "Configuration: header limits", WARNING, "16 KiB"),
    ("trusted_proxies: [10.0.0.1]", "Configuration: header limits", OK, "nginx"),
    ("routes: [GET /**: {public: true}]", "Configuration: public routes", WARNING, "GET /**"),
    ("routes: [POST /hook: {public: true}]", "Configuration: public routes", WARNING, "POST /hook"),
    ("routes: [GET /docs/**: {public: true}]", "Configuration: public routes", OK, "GET /docs/**"),
    ("routes: [GET /healthz: {public: true}]", "Configuration: probes", OK, "GET /healthz"),
    ("drain: {delay: 10s, timeout: 25s}", "Configuration: time to end", PROBLEM, "30s"),
    ("reload: {watch: false}", "Configuration: changes", OK, "SIGHUP"),
    ("limits: {connections: 65536}", "Listeners: open files", PROBLEM, "65,536"),
    ("keys: {environments: {live: a_}}", "Key store: age of keys", OK, "never expire"),
]


@pytest.mark.parametrize(("more", "check", "severity", "word"), CONFIGURED, ids=[row[0] for row in CONFIGURED])
def test_what_the_configuration_says_is_judged(
    tmp_path: Path, more: str, check: str, severity: Severity, word: str
) -> None:
    found = finding(installation(tmp_path, more), check)
    assert found.severity is severity
    assert word in found.saw


def test_without_an_ops_listener_probes_have_nothing_to_ask_or_only_the_upstream(tmp_path: Path) -> None:
    seen = installation(tmp_path)
    bare = replace(seen, config=replace(seen.config, ops=None))
    assert "nothing answers without a key" in finding(bare, "Configuration: probes").saw
    seen = installation(tmp_path, "routes: [GET /v1/health: {public: true}]")
    bare = replace(seen, config=replace(seen.config, ops=None))
    assert "GET /v1/health" in finding(bare, "Configuration: probes").saw
    assert finding(bare, "Configuration: probes").severity is WARNING


def test_an_admin_listener_on_the_network_is_a_problem_unless_it_has_a_name_there(tmp_path: Path) -> None:
    environ = {"SIDECAR_ADMIN_TOKEN": "t" * 20}
    seen = installation(tmp_path, "admin: 0.0.0.0:9091", environ=environ)
    assert finding(seen, "Listeners: admin").severity is PROBLEM
    seen = installation(tmp_path, "admin: {listen: 0.0.0.0:9091, hosts: [keys.internal]}", environ=environ)
    assert finding(seen, "Listeners: admin").severity is WARNING
    seen = installation(tmp_path, "admin: 127.0.0.1:9091", environ=environ)
    assert finding(seen, "Listeners: admin").severity is OK


@pytest.mark.parametrize(("bits", "severity"), [(None, OK), (40.0, PROBLEM), (90.0, WARNING), (200.0, WARNING)])
def test_an_admin_token_in_the_environment_is_weighed(tmp_path: Path, bits: float | None, severity: Severity) -> None:
    seen = installation(tmp_path, "admin: 127.0.0.1:9091", environ={"SIDECAR_ADMIN_TOKEN": "t" * 20})
    seen = replace(seen, secrets=replace(seen.secrets, admin_token_bits=bits))
    assert finding(seen, "Secrets: admin token").severity is severity


def test_in_kubernetes_an_open_ops_listener_and_an_open_volume_are_as_they_should_be(tmp_path: Path) -> None:
    seen = installation(tmp_path, "ops: 0.0.0.0:9090")
    seen = replace(seen, host=replace(seen.host, in_kubernetes=True))
    seen = with_files(seen, store_folder=FileFacts(path="/data", mode=0o777, uid=0))
    assert finding(seen, "Listeners: ops").severity is OK
    assert "Kubernetes" in finding(seen, "Listeners: ops").saw
    assert finding(seen, "Key store: folder").severity is OK


def test_without_a_word_of_the_platform_its_default_is_assumed(tmp_path: Path) -> None:
    seen = replace(installation(tmp_path, "drain: {delay: 10s, timeout: 25s}"), grace_seconds=None)
    assert finding(seen, "Configuration: time to end").severity is WARNING
    assert "--grace" in finding(seen, "Configuration: time to end").do


def upstream(**changes: object) -> Spoil:
    found = UpstreamSeen(seconds=0.001, certificate_ends_at=None, clock_ahead=0.0)
    return lambda seen: replace(seen, upstream=replace(found, **changes))  # type: ignore[arg-type]


def around(found: BypassProbe | Unknown) -> Spoil:
    return lambda seen: replace(seen, around=found)


def files(**changes: object) -> Spoil:
    return lambda seen: with_files(seen, **changes)


def look(**changes: object) -> Spoil:
    return lambda seen: with_look(seen, **changes)


def store(**changes: object) -> Spoil:
    def spoil(seen: Facts) -> Facts:
        assert isinstance(seen.store, StoreSeen)
        return replace(seen, store=replace(seen.store, **changes))  # type: ignore[arg-type]

    return spoil


def running(*, ready: bool = True, lines: tuple[str, ...] = (), **metrics: float) -> Spoil:
    def spoil(seen: Facts) -> Facts:
        assert not isinstance(seen.running, Unknown)
        told = {name.replace("__", "{", 1): value for name, value in metrics.items()}
        found = replace(seen.running, ready=ready, lines=lines or seen.running.lines)
        return replace(seen, running=replace(found, metrics={**found.metrics, **told}))

    return spoil


def secrets(**changes: object) -> Spoil:
    return lambda seen: replace(seen, secrets=replace(seen.secrets, **changes))  # type: ignore[arg-type]


def host(**changes: object) -> Spoil:
    return lambda seen: replace(seen, host=replace(seen.host, **changes))  # type: ignore[arg-type]


def file(mode: int, uid: int = 1000, path: str = "/d/keys.db") -> FileFacts:
    return FileFacts(path=path, mode=mode, uid=uid)


OUTSIDE = Address(host="10.0.0.5", port=8000)
HELD = "hmac-sha256:0a0a0a0a"
SPOILT: list[tuple[str, Spoil, Severity]] = [
    ("Upstream: ways around", around(BypassProbe(location="loopback", answered=(OUTSIDE,))), PROBLEM),
    ("Upstream: ways around", around(BypassProbe(location="this host")), PROBLEM),
    ("Upstream: ways around", around(BypassProbe(location="elsewhere")), WARNING),
    ("Upstream: ways around", around(BypassProbe(location="unix", socket=file(0o777))), WARNING),
    ("Upstream: ways around", around(BypassProbe(location="unix", socket=file(0o770))), OK),
    ("Upstream: ways around", around(NOBODY), UNCHECKED),
    ("Upstream: connection", lambda seen: replace(seen, upstream=NOBODY), PROBLEM),
    ("Upstream: certificate", upstream(certificate_ends_at=NOW + 13 * DAY), WARNING),
    ("Upstream: certificate", upstream(certificate_ends_at=NOW - 1), PROBLEM),
    ("Upstream: clock", upstream(clock_ahead=5.0), OK),
    ("Upstream: clock", upstream(clock_ahead=-6.0), WARNING),
    ("Upstream: clock", upstream(clock_ahead=NOBODY), UNCHECKED),
    ("Listeners: certificates", files(listener_tls="tls.key: Permission denied"), PROBLEM),
    ("Listeners: certificates", files(certificates=(NOBODY,)), UNCHECKED),
    (
        "Listeners: certificates",
        files(certificates=(CertificateFacts(path="/c", begins_at=NOW - DAY, ends_at=NOW + 13 * DAY),)),
        WARNING,
    ),
    (
        "Listeners: certificates",
        files(certificates=(CertificateFacts(path="/c", begins_at=NOW + DAY, ends_at=NOW + 90 * DAY),)),
        PROBLEM,
    ),
    ("Listeners: open files", host(sidecar=ProcessSeen(pid=7, uid=1000, open_files=1024)), PROBLEM),
    ("Listeners: open files", host(sidecar=NOBODY, own=ProcessSeen(pid=9, uid=0, open_files=1024)), WARNING),
    ("Listeners: open files", host(sidecar=ProcessSeen(pid=7, uid=1000, open_files=None)), OK),
    ("Listeners: event loop", host(uvloop=False), WARNING),
    ("Configuration: changes", files(config_alone=True), WARNING),
    ("Configuration: file mode", files(config=file(0o646)), PROBLEM),
    ("Configuration: file mode", files(config=file(0o664)), WARNING),
    ("Configuration: file mode", files(config=file(0o644), literal_secrets=1), PROBLEM),
    ("Configuration: file mode", files(config=file(0o600), literal_secrets=1), OK),
    ("Secrets: pepper", secrets(pepper_bits=None), WARNING),
    ("Secrets: pepper", secrets(pepper_bits=20.0), WARNING),
    ("Secrets: pepper", secrets(pepper_problem="SIDECAR_PEPPER must have at least 16 characters"), PROBLEM),
    ("Secrets: pepper", look(algorithms={HELD: 2}), PROBLEM),
    ("Secrets: previous pepper", secrets(previous_algorithm=HELD), WARNING),
    ("Secrets: TLS keys", files(tls_keys=(file(0o644),)), PROBLEM),
    ("Secrets: TLS keys", files(tls_keys=(file(0o640),)), OK),
    ("Secrets: TLS keys", files(tls_keys=(NOBODY,)), UNCHECKED),
    ("Key store: schema", lambda seen: replace(seen, store=NOBODY), PROBLEM),
    ("Key store: schema", lambda seen: replace(files(store=(file(0o600, uid=7),))(seen), store=NOBODY), UNCHECKED),
    ("Key store: schema", look(version=0), PROBLEM),
    ("Key store: schema", look(version=1), WARNING),
    ("Key store: schema", look(version=3), PROBLEM),
    ("Key store: file modes", files(store=(file(0o644),)), PROBLEM),
    ("Key store: file modes", files(store=(file(0o640),)), WARNING),
    ("Key store: folder", files(store_folder=file(0o777)), PROBLEM),
    ("Key store: folder", files(store_folder=file(0o1777)), WARNING),
    ("Key store: owner", files(store=(file(0o600), file(0o600, uid=0, path="/d/keys.db-wal"))), PROBLEM),
    ("Key store: owner", host(sidecar=ProcessSeen(pid=7, uid=2000, open_files=None)), WARNING),
    ("Key store: owner", host(sidecar=NOBODY), OK),
    ("Key store: disk", files(disk=DiskSeen(kind="nfs4", free=2**34, total=2**35)), PROBLEM),
    ("Key store: disk", files(disk=DiskSeen(kind="fuse.s3fs", free=2**34, total=2**35)), WARNING),
    ("Key store: disk", files(disk=DiskSeen(kind="overlay", free=2**34, total=2**35)), WARNING),
    ("Key store: disk", files(disk=DiskSeen(kind="ext4", free=2**20, total=2**35)), WARNING),
    ("Key store: latency", store(latencies=(Latency(operation="key looked up", median=0.05, slowest=0.1),)), WARNING),
    ("Key store: latency", store(latencies=(Latency(operation="right to write", median=0.01, slowest=2.0),)), WARNING),
    ("Key store: latency", store(latencies=NOBODY), UNCHECKED),
    ("Key store: latency", store(trouble="the key store is locked by another process"), PROBLEM),
    ("Key store: clock", look(newest_at=int(NOW + 60) * 1_000_000), WARNING),
    ("Key store: clock", look(newest_at=int(NOW + 600) * 1_000_000), PROBLEM),
    ("Key store: clock", look(newest_at=0), OK),
    ("Key store: audit", store(audit=NOBODY), UNCHECKED),
    ("Key store: age of keys", look(too_old=1), WARNING),
    ("Running sidecar: readiness", lambda seen: replace(seen, running=NOBODY), UNCHECKED),
    ("Running sidecar: readiness", running(ready=False, lines=("store: gone", "config: ok")), PROBLEM),
    ("Running sidecar: configuration", running(sidecar_config_last_reload_successful=0.0), PROBLEM),
    (
        "Running sidecar: configuration",
        running(lines=("config: in force but for what needs a restart: listen",)),
        WARNING,
    ),
    ("Running sidecar: version", lambda seen: replace(seen, version="2.0.0"), WARNING),
    ("Running sidecar: faults", running(sidecar_access_log_dropped_total=3.0), WARNING),
]


@pytest.mark.parametrize(("check", "spoil", "severity"), SPOILT, ids=[f"{row[0]} {row[2]}" for row in SPOILT])
def test_what_was_seen_is_judged(tmp_path: Path, check: str, spoil: Spoil, severity: Severity) -> None:
    assert finding(spoil(installation(tmp_path)), check).severity is severity


def test_keys_that_never_expire_are_told_where_nobody_is_reminded_of_them(tmp_path: Path) -> None:
    seen = with_look(installation(tmp_path, "keys: {environments: {live: a_}}"), without_expiry=2)
    found = finding(seen, "Key store: age of keys")
    assert found.severity is WARNING
    assert "2 of 3 active keys never expire" in found.saw


def test_a_previous_pepper_that_keys_still_need_is_well(tmp_path: Path) -> None:
    seen = secrets(previous_algorithm=HELD, algorithms=frozenset({HELD}))(installation(tmp_path))
    found = finding(with_look(seen, algorithms={HELD: 2}), "Secrets: previous pepper")
    assert (found.severity, found.saw) == (OK, "2 keys still need SIDECAR_PEPPER_PREVIOUS")
