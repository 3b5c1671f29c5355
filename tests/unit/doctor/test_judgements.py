"""Each check: what is ok, a warning, a problem or unchecked."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from sidecar.config.fields import Address, UpstreamUrl
from sidecar.doctor.facts import (
    BypassProbe,
    CertificateFacts,
    DiskFacts,
    Facts,
    FileFacts,
    KeyFileFacts,
    Latency,
    Location,
    ProcessFacts,
    ReplicaFacts,
    StoreFacts,
    Unknown,
    UpstreamFacts,
)
from sidecar.doctor.findings import Severity
from sidecar.doctor.run import run_checks
from tests.unit.doctor.installations import DAY, NOW, finding, installation, with_files, with_report

OK, WARNING, PROBLEM, UNCHECKED = Severity.OK, Severity.WARNING, Severity.PROBLEM, Severity.UNCHECKED
Spoil = Callable[[Facts], Facts]
NOBODY = Unknown(reason="unknown")


def test_a_sound_installation_has_no_problems(tmp_path: Path) -> None:
    found = run_checks(installation(tmp_path))
    assert {one.finding.severity for one in found} == {OK}
    assert not [one for one in found if "Address(" in one.finding.saw]
    assert len(found) > 25


def test_every_problem_has_a_cause_and_a_remedy(tmp_path: Path) -> None:
    for _, spoil, _ in SPOILT:
        for one in run_checks(spoil(installation(tmp_path))):
            if one.finding.severity in (WARNING, PROBLEM):
                assert one.finding.why and one.finding.do, one


CONFIGURED = [
    ("listen: 0.0.0.0:8080", "Listeners: data", WARNING, "without TLS"),
    ("listen: 0.0.0.0:8080\ntrusted_proxies: [10.0.0.0/8]", "Listeners: data", OK, "behind the trusted proxies"),
    ("tls: {certificate: /c, key: /k}\nlisten: 0.0.0.0:8080", "Listeners: data", OK, "with TLS"),
    ('listen: ["127.0.0.1:1", "[::]:8080"]', "Listeners: data", WARNING, "[::]:8080: open to the network"),
    ('listen: ["127.0.0.1:1", "[::1]:8080", "unix:/s"]', "Listeners: data", OK, "unix:/s, reachable from this host"),
    ('ops: ["127.0.0.1:1", "0.0.0.0:9090"]', "Listeners: ops", WARNING, "0.0.0.0:9090: open to the network"),
    ('ops: ["127.0.0.1:1", "[::1]:2"]', "Configuration: probes", OK, "/livez and /readyz at 127.0.0.1:1, [::1]:2 need"),
    ("ops: 0.0.0.0:9090", "Listeners: ops", WARNING, "open to the network"),
    ("keys: {environments: {live: a_}, from: [{query: api_key}]}", "Configuration: key in query", WARNING, "api_key"),
    ("mode: observe", "Configuration: mode", WARNING, "only observed, not enforced: everything"),
    ("routes: [GET /x: {mode: observe}]", "Configuration: mode", WARNING, "not enforced: `GET /x`"),
    ("routes: [GET /x: {mode: enforce}]", "Configuration: mode", OK, "every decision is enforced"),
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
    ("ops: ['127.0.0.1:9090', '[::1]:9090']", "Configuration: probes", OK, "at 127.0.0.1:9090, [::1]:9090 need"),
    ("drain: {delay: 10s, timeout: 25s}", "Configuration: time to end", PROBLEM, "30s"),
    ("reload: {watch: false}", "Configuration: changes", OK, "SIGHUP"),
    ("limits: {connections: 65536}", "Listeners: open files", PROBLEM, "65,536"),
    ("keys: {environments: {live: a_}}", "Key store: age of keys", OK, "never expire"),
]


@pytest.mark.parametrize(("more", "check", "severity", "word"), CONFIGURED, ids=[row[0] for row in CONFIGURED])
def test_settings_of_the_configuration_are_checked(
    tmp_path: Path, more: str, check: str, severity: Severity, word: str
) -> None:
    found = finding(installation(tmp_path, more), check)
    assert found.severity is severity
    assert word in found.saw


def test_without_an_ops_listener_probes_have_no_target_or_only_the_upstream(tmp_path: Path) -> None:
    facts = installation(tmp_path)
    bare = replace(facts, config=replace(facts.config, ops=None))
    assert "every endpoint needs a key" in finding(bare, "Configuration: probes").saw
    facts = installation(tmp_path, "routes: [GET /v1/health: {public: true}]")
    bare = replace(facts, config=replace(facts.config, ops=None))
    assert "GET /v1/health" in finding(bare, "Configuration: probes").saw
    assert finding(bare, "Configuration: probes").severity is WARNING


def test_an_admin_listener_on_the_network_is_a_problem_unless_it_has_a_name_there(tmp_path: Path) -> None:
    environ = {"SIDECAR_ADMIN_TOKEN": "t" * 20}
    facts = installation(tmp_path, "admin: 0.0.0.0:9091", environ=environ)
    assert finding(facts, "Listeners: admin").severity is PROBLEM
    facts = installation(tmp_path, "admin: {listen: 0.0.0.0:9091, hosts: [keys.internal]}", environ=environ)
    assert finding(facts, "Listeners: admin").severity is WARNING
    facts = installation(tmp_path, "admin: 127.0.0.1:9091", environ=environ)
    assert finding(facts, "Listeners: admin").severity is OK


@pytest.mark.parametrize(("bits", "severity"), [(None, OK), (40.0, PROBLEM), (90.0, WARNING), (200.0, WARNING)])
def test_an_admin_token_in_the_environment_is_weighed(tmp_path: Path, bits: float | None, severity: Severity) -> None:
    facts = installation(tmp_path, "admin: 127.0.0.1:9091", environ={"SIDECAR_ADMIN_TOKEN": "t" * 20})
    facts = replace(facts, secrets=replace(facts.secrets, admin_token_bits=bits))
    assert finding(facts, "Secrets: admin token").severity is severity


def test_in_kubernetes_an_open_ops_listener_and_an_open_volume_are_as_they_should_be(tmp_path: Path) -> None:
    facts = installation(tmp_path, "ops: 0.0.0.0:9090")
    facts = replace(facts, host=replace(facts.host, in_kubernetes=True))
    facts = with_files(facts, store_folder=FileFacts(path="/data", mode=0o777, uid=0))
    assert finding(facts, "Listeners: ops").severity is OK
    assert "Kubernetes" in finding(facts, "Listeners: ops").saw
    assert finding(facts, "Key store: folder").severity is OK


def test_without_information_from_the_platform_its_default_is_assumed(tmp_path: Path) -> None:
    facts = replace(installation(tmp_path, "drain: {delay: 10s, timeout: 25s}"), grace_seconds=None)
    assert finding(facts, "Configuration: time to end").severity is WARNING
    assert "--grace" in finding(facts, "Configuration: time to end").do


def upstream(**changes: object) -> Spoil:
    found = UpstreamFacts(seconds=0.001, certificate_ends_at=None, clock_ahead=0.0)
    return lambda facts: replace(facts, upstream=replace(found, **changes))  # type: ignore[arg-type]


def bypass(found: BypassProbe | Unknown) -> Spoil:
    return lambda facts: replace(facts, bypass=found)


@pytest.mark.parametrize(
    ("listen", "location", "severity"),
    [
        ("0.0.0.0:8000", "this host", PROBLEM),
        ("0.0.0.0:8000", "loopback", PROBLEM),
        ("0.0.0.0:8000", "elsewhere", OK),
        ("0.0.0.0:8001", "this host", OK),
        ("127.0.0.1:8000", "this host", OK),
        ("service:8000", "elsewhere", PROBLEM),
    ],
)
def test_an_upstream_that_is_the_sidecar_under_another_name_is_a_problem(
    tmp_path: Path, listen: str, location: Location, severity: Severity
) -> None:
    facts = bypass(BypassProbe(location=location))(installation(tmp_path))
    host, _, port = listen.rpartition(":")
    itself = structs.replace(facts.config.upstream, url=UpstreamUrl(address=Address(host="service", port=8000)))
    facts = replace(facts, config=replace(facts.config, listen=(Address(host=host, port=int(port)),), upstream=itself))
    assert finding(facts, "Upstream: loop").severity is severity


def files(**changes: object) -> Spoil:
    return lambda facts: with_files(facts, **changes)


def report(**changes: object) -> Spoil:
    return lambda facts: with_report(facts, **changes)


def store(**changes: object) -> Spoil:
    def spoil(facts: Facts) -> Facts:
        assert isinstance(facts.store, StoreFacts)
        return replace(facts, store=replace(facts.store, **changes))  # type: ignore[arg-type]

    return spoil


def running(*, ready: bool = True, lines: tuple[str, ...] = (), **metrics: float) -> Spoil:
    def spoil(facts: Facts) -> Facts:
        assert not isinstance(facts.running, Unknown)
        samples = {name.replace("__", "{", 1): value for name, value in metrics.items()}
        found = replace(facts.running, ready=ready, lines=lines or facts.running.lines)
        return replace(facts, running=replace(found, metrics={**found.metrics, **samples}))

    return spoil


def secrets(**changes: object) -> Spoil:
    return lambda facts: replace(facts, secrets=replace(facts.secrets, **changes))  # type: ignore[arg-type]


def host(**changes: object) -> Spoil:
    return lambda facts: replace(facts, host=replace(facts.host, **changes))  # type: ignore[arg-type]


def file(mode: int, uid: int = 1000, path: str = "/d/keys.db") -> FileFacts:
    return FileFacts(path=path, mode=mode, uid=uid)


OUTSIDE = Address(host="10.0.0.5", port=8000)
HELD = "hmac-sha256:0a0a0a0a"


def key_file(**found: Any) -> Spoil:
    return lambda facts: replace(facts, key_file=KeyFileFacts(path="/k", **found))


def with_replica(is_standby: bool = True, in_step: bool = True, seconds: float = 0.001) -> Spoil:
    return lambda facts: replace(facts, replica=ReplicaFacts(is_standby=is_standby, in_step=in_step, seconds=seconds))


SPOILT: list[tuple[str, Spoil, Severity]] = [
    ("Key store: replica", with_replica(), OK),
    ("Key store: replica", with_replica(in_step=False), WARNING),
    ("Key store: replica", with_replica(is_standby=False), WARNING),
    ("Key store: replica", with_replica(seconds=1.0), WARNING),
    ("Key store: replica", lambda facts: replace(facts, replica=NOBODY), WARNING),
    ("Key store: replica", lambda facts: replace(facts, replica=NOBODY, store=NOBODY), UNCHECKED),
    ("Upstream: ways around", bypass(BypassProbe(location="loopback", reachable=(OUTSIDE,))), PROBLEM),
    ("Upstream: ways around", bypass(BypassProbe(location="this host")), PROBLEM),
    ("Upstream: ways around", bypass(BypassProbe(location="elsewhere")), WARNING),
    ("Upstream: ways around", bypass(BypassProbe(location="unix", socket=file(0o777))), WARNING),
    ("Upstream: ways around", bypass(BypassProbe(location="unix", socket=file(0o770))), OK),
    ("Upstream: ways around", bypass(NOBODY), UNCHECKED),
    ("Upstream: connection", lambda facts: replace(facts, upstream=NOBODY), PROBLEM),
    ("Key store: file", key_file(records=3), OK),
    ("Key store: file", key_file(problems=("/k:1: is not JSON", "/k:2: is not JSON")), PROBLEM),
    ("Key store: file", key_file(alone=True), WARNING),
    ("Key store: file", lambda facts: replace(facts, key_file=NOBODY), UNCHECKED),
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
    ("Listeners: open files", host(sidecar=ProcessFacts(pid=7, uid=1000, open_files=1024)), PROBLEM),
    ("Listeners: open files", host(sidecar=NOBODY, own=ProcessFacts(pid=9, uid=0, open_files=1024)), WARNING),
    ("Listeners: open files", host(sidecar=ProcessFacts(pid=7, uid=1000, open_files=None)), OK),
    ("Listeners: event loop", host(uvloop=False), WARNING),
    ("Configuration: changes", files(config_alone=True), WARNING),
    ("Configuration: file mode", files(config=file(0o646)), PROBLEM),
    ("Configuration: file mode", files(config=file(0o664)), WARNING),
    ("Configuration: file mode", files(config=file(0o644), literal_secrets=1), PROBLEM),
    ("Configuration: file mode", files(config=file(0o600), literal_secrets=1), OK),
    ("Secrets: pepper", secrets(pepper_bits=None), WARNING),
    ("Secrets: pepper", secrets(pepper_bits=20.0), WARNING),
    ("Secrets: pepper", secrets(pepper_problem="SIDECAR_PEPPER must have at least 16 characters"), PROBLEM),
    ("Secrets: pepper", report(algorithms={HELD: 2}), PROBLEM),
    ("Secrets: previous pepper", secrets(previous_algorithm=HELD), WARNING),
    ("Secrets: TLS keys", files(tls_keys=(file(0o644),)), PROBLEM),
    ("Secrets: TLS keys", files(tls_keys=(file(0o640),)), OK),
    ("Secrets: TLS keys", files(tls_keys=(NOBODY,)), UNCHECKED),
    ("Key store: schema", lambda facts: replace(facts, store=NOBODY), PROBLEM),
    ("Key store: schema", lambda facts: replace(files(store=(file(0o600, uid=7),))(facts), store=NOBODY), PROBLEM),
    (
        "Key store: schema",
        lambda facts: replace(
            files(store=(file(0o600, uid=7),))(facts),
            store=NOBODY,
            host=replace(facts.host, sidecar=ProcessFacts(pid=9, uid=7, open_files=None)),
        ),
        UNCHECKED,
    ),
    ("Key store: schema", report(version=0), PROBLEM),
    ("Key store: schema", report(version=1), WARNING),
    ("Key store: schema", report(version=3), PROBLEM),
    ("Key store: file modes", files(store=(file(0o644),)), PROBLEM),
    ("Key store: file modes", files(store=(file(0o640),)), WARNING),
    ("Key store: folder", files(store_folder=file(0o777)), PROBLEM),
    ("Key store: folder", files(store_folder=file(0o1777)), WARNING),
    ("Key store: owner", files(store=(file(0o600), file(0o600, uid=0, path="/d/keys.db-wal"))), PROBLEM),
    ("Key store: owner", host(sidecar=ProcessFacts(pid=7, uid=2000, open_files=None)), WARNING),
    ("Key store: owner", host(sidecar=NOBODY), OK),
    ("Key store: disk", files(disk=DiskFacts(kind="nfs4", free=2**34, total=2**35)), PROBLEM),
    ("Key store: disk", files(disk=DiskFacts(kind="fuse.s3fs", free=2**34, total=2**35)), WARNING),
    ("Key store: disk", files(disk=DiskFacts(kind="overlay", free=2**34, total=2**35)), WARNING),
    ("Key store: disk", files(disk=DiskFacts(kind="ext4", free=2**20, total=2**35)), WARNING),
    ("Key store: latency", store(latencies=(Latency(operation="key lookup", median=0.05, slowest=0.1),)), WARNING),
    ("Key store: latency", store(latencies=(Latency(operation="write lock", median=0.01, slowest=2.0),)), WARNING),
    ("Key store: latency", store(latencies=NOBODY), UNCHECKED),
    ("Key store: latency", store(trouble="the key store is locked by another process"), PROBLEM),
    ("Key store: clock", report(newest_at=int(NOW + 60) * 1_000_000), WARNING),
    ("Key store: clock", report(newest_at=int(NOW + 600) * 1_000_000), PROBLEM),
    ("Key store: clock", report(newest_at=0), OK),
    ("Key store: audit", store(audit=NOBODY), UNCHECKED),
    ("Key store: age of keys", report(too_old=1), WARNING),
    ("Running sidecar: readiness", lambda facts: replace(facts, running=NOBODY), UNCHECKED),
    ("Running sidecar: readiness", running(ready=False, lines=("store: gone", "config: ok")), PROBLEM),
    ("Running sidecar: writes", running(sidecar_store_writable=0.0), PROBLEM),
    ("Running sidecar: configuration", running(sidecar_config_last_reload_successful=0.0), PROBLEM),
    (
        "Running sidecar: configuration",
        running(lines=("config: in force but for what needs a restart: listen",)),
        WARNING,
    ),
    ("Running sidecar: version", lambda facts: replace(facts, version="2.0.0"), WARNING),
    ("Running sidecar: faults", running(sidecar_access_log_dropped_total=3.0), WARNING),
]


@pytest.mark.parametrize(("check", "spoil", "severity"), SPOILT, ids=[f"{row[0]} {row[2]}" for row in SPOILT])
def test_observed_facts_are_checked(tmp_path: Path, check: str, spoil: Spoil, severity: Severity) -> None:
    assert finding(spoil(installation(tmp_path)), check).severity is severity


def test_keys_that_never_expire_are_reported_if_nothing_reminds_of_them(tmp_path: Path) -> None:
    facts = with_report(installation(tmp_path, "keys: {environments: {live: a_}}"), without_expiry=2)
    found = finding(facts, "Key store: age of keys")
    assert found.severity is WARNING
    assert "2 of 3 active keys never expire" in found.saw


def test_a_previous_pepper_that_keys_still_need_is_not_a_problem(tmp_path: Path) -> None:
    facts = secrets(previous_algorithm=HELD, algorithms=frozenset({HELD}))(installation(tmp_path))
    found = finding(with_report(facts, algorithms={HELD: 2}), "Secrets: previous pepper")
    assert (found.severity, found.saw) == (OK, "2 keys still need SIDECAR_PEPPER_PREVIOUS")
