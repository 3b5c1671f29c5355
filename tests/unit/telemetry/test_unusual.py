"""What is unusual, and how it is reported."""

import json
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from sidecar.config.document import UsageSettings
from sidecar.core.errors import Reason
from sidecar.telemetry.metrics import UsageMetrics
from sidecar.usage.anomalies import AnomalyDetector, AnomalyKind, Unusual, network_of
from tests.harness.clock import Clock

NOW = 1_800_000_000
NOW_US = NOW * 1_000_000
DAY = 86_400_000_000
DEFAULTS = UsageSettings().unusual


class Watch:
    """AnomalyDetector with a settable clock, and the lines that it wrote."""

    def __init__(self, limits: Unusual = DEFAULTS) -> None:
        self.clock = Clock(float(NOW))
        self.lines: list[str] = []
        self.activity = AnomalyDetector(limits, clock=self.clock, write=self.lines.append)

    def used(self, *, key_id: str = "key_1", idle: int = 0, new: tuple[str, ...] = (), before: bool = True) -> None:
        at = self.clock.micros()
        self.activity.used(key_id, at, "203.0.113.9", idle_since=at - idle, used_before=before, new_networks=new)

    def refused(self, reason: Reason, count: int = 1, *, key_id: str = "key_1", address: str = "203.0.113.9") -> None:
        at, network = self.clock.micros(), network_of(address)
        self.activity.refused(key_id, at, address, network=network, reason=reason, count=count)

    def told(self) -> list[tuple[str, str | None, str]]:
        """What was logged so far."""
        lines = [json.loads(line) for line in self.lines]
        return [(line["kind"], line["key_id"], line["detail"]) for line in lines]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.9", "203.0.113.0/24"),
        ("2001:db8:1:2:3::4", "2001:db8:1::/48"),
        ("::ffff:203.0.113.9", "203.0.113.0/24"),
        ("fe80::1%eth0", "fe80::/48"),
        ("", ""),
        ("not an address", ""),
    ],
)
def test_a_network_is_a_24_or_a_48(address: str, network: str) -> None:
    assert network_of(address) == network


def test_a_key_that_was_long_unused_is_named() -> None:
    watch = Watch()
    watch.used(idle=30 * DAY - 1)
    assert watch.told() == []
    watch.used(idle=30 * DAY)
    assert watch.told() == [(AnomalyKind.UNUSED_KEY, "key_1", "used 30 days after its last use")]


def test_a_key_that_was_never_used_is_idle_since_its_issue() -> None:
    watch = Watch()
    watch.used(idle=45 * DAY, before=False)
    assert watch.told() == [(AnomalyKind.UNUSED_KEY, "key_1", "used 45 days after it was issued, and never before")]


def test_a_new_network_is_named_and_each_once() -> None:
    watch = Watch()
    watch.used(new=("203.0.113.0/24",))
    watch.used(new=("203.0.113.0/24",))
    assert watch.told() == [(AnomalyKind.NEW_NETWORK, "key_1", "first use from 203.0.113.0/24")]


@pytest.mark.parametrize(("reason", "kind"), [(Reason.REVOKED_KEY, "revoked_key"), (Reason.RETIRED_KEY, "retired_key")])
def test_a_revoked_or_retired_key_in_use_is_reported(reason: Reason, kind: str) -> None:
    watch = Watch()
    watch.refused(reason)
    assert watch.told() == [(kind, "key_1", "still tried, from 203.0.113.0/24")]


def test_refusals_of_a_key_are_named_when_they_are_many_at_a_time() -> None:
    watch = Watch()
    watch.refused(Reason.QUOTA_EXCEEDED, 60)
    watch.refused(Reason.INSUFFICIENT_SCOPE, 39)
    assert watch.told() == []
    watch.clock.now += 60
    watch.refused(Reason.QUOTA_EXCEEDED, 99)
    assert watch.told() == []
    watch.refused(Reason.INSUFFICIENT_SCOPE, 1)
    detail = "100 refusals within 1 minute, last from 203.0.113.0/24, most of them quota_exceeded"
    assert watch.told() == [(AnomalyKind.REFUSALS, "key_1", detail)]


def test_refusals_without_a_known_key_are_counted_by_network() -> None:
    watch = Watch()
    for number in range(100):
        watch.refused(Reason.INVALID_KEY, key_id="", address=f"203.0.113.{number}")
    watch.refused(Reason.INVALID_KEY, 99, key_id="", address="198.51.100.1")
    detail = "100 refusals within 1 minute, last from 203.0.113.0/24, most of them invalid_key"
    assert watch.told() == [(AnomalyKind.REFUSALS, None, detail)]


@pytest.mark.parametrize("reason", [Reason.BAD_REQUEST, Reason.STORE_UNAVAILABLE, Reason.METHOD_NOT_ALLOWED])
def test_other_denials_do_not_count_as_credential_refusals(reason: Reason) -> None:
    watch = Watch()
    watch.refused(reason, 1000)
    assert watch.told() == []


def test_everything_can_be_turned_off_and_on_again() -> None:
    watch = Watch(replace(DEFAULTS, unused_seconds=None, new_network=False, refusals=None))
    watch.used(idle=90 * DAY, new=("203.0.113.0/24",))
    watch.refused(Reason.INVALID_KEY, 1000)
    assert watch.told() == []
    watch.activity.reconfigure(replace(DEFAULTS, refusals=3))
    watch.refused(Reason.INVALID_KEY, 3)
    assert [kind for kind, *_ in watch.told()] == ["refusals"]


def test_a_key_is_reported_once_in_a_batch_out_of_time_order() -> None:
    watch = Watch(replace(DEFAULTS, refusals=2, refusals_seconds=600))
    for address in ("203.0.113.9", "198.51.100.7", "192.0.2.1"):
        watch.refused(Reason.REVOKED_KEY, address=address)
        watch.refused(Reason.INSUFFICIENT_SCOPE, key_id="key_2", address=address)
        watch.clock.now -= 5
    assert [(kind, key_id) for kind, key_id, _ in watch.told()] == [
        (AnomalyKind.REVOKED_KEY, "key_1"),
        (AnomalyKind.REFUSALS, "key_1"),
        (AnomalyKind.REFUSALS, "key_2"),
    ]


def test_the_same_event_is_reported_again_only_after_a_while() -> None:
    watch = Watch(replace(DEFAULTS, repeat_after_seconds=60))
    for seconds in (0, 59, 1, 59):
        watch.clock.now += seconds
        watch.refused(Reason.REVOKED_KEY)
    watch.refused(Reason.REVOKED_KEY, key_id="key_2")
    assert [key_id for _, key_id, _ in watch.told()] == ["key_1", "key_1", "key_2"]


def test_an_event_is_one_line_of_json() -> None:
    watch = Watch()
    watch.refused(Reason.REVOKED_KEY, address="2001:db8::1")
    [line] = watch.lines
    assert json.loads(line) == {
        "time": "2027-01-15T08:00:00.000Z",
        "event": "unusual",
        "kind": "revoked_key",
        "key_id": "key_1",
        "client_address": "2001:db8::1",
        "detail": "still tried, from 2001:db8::/48",
    }
    assert line.isascii()
    assert line.isprintable()


def test_the_log_is_limited_and_says_what_it_left_out() -> None:
    watch = Watch()
    for number in range(100):
        watch.refused(Reason.REVOKED_KEY, key_id=f"key_{number}")
    assert len(watch.lines) == 60
    assert watch.activity.events.counts["revoked_key"] == 100
    watch.clock.now += 60
    watch.refused(Reason.REVOKED_KEY, key_id="another")
    assert json.loads(watch.lines[-1])["unlogged"] == 40


def test_memory_is_bounded_and_no_kind_evicts_another() -> None:
    watch = Watch()
    watch.used(idle=31 * DAY)
    for number in range(20_000):
        watch.refused(Reason.INVALID_KEY, 100, key_id="", address=f"10.{number >> 8}.{number & 255}.1")
    kinds = [kind for kind, *_ in watch.told()]
    assert kinds.count(AnomalyKind.UNUSED_KEY) == 1
    assert len(kinds) < 100


def test_fresh_events_are_handed_over_once() -> None:
    watch = Watch()
    watch.refused(Reason.REVOKED_KEY)
    assert [event.key_id for event in watch.activity.events.fresh()] == ["key_1"]
    assert watch.activity.events.fresh() == []


def test_events_reported_before_a_restart_are_not_reported_again() -> None:
    before, watch = Watch(), Watch()
    before.refused(Reason.REVOKED_KEY)
    watch.activity.events.restore(before.activity.events.fresh())
    watch.clock.now += 10
    watch.refused(Reason.REVOKED_KEY)
    assert watch.lines == []
    assert watch.activity.events.counts["revoked_key"] == 0


def test_every_kind_has_a_series_from_the_start() -> None:
    registry, watch = CollectorRegistry(), Watch()
    registry.register(UsageMetrics(watch.activity.events.counts, dropped=lambda: 7))
    watch.refused(Reason.RETIRED_KEY)

    def value(name: str, labels: dict[str, str] | None = None) -> Any:
        return registry.get_sample_value(name, labels or {})

    counted = {kind: value("sidecar_unusual_total", {"kind": kind}) for kind in AnomalyKind}
    assert counted == {kind: float(kind is AnomalyKind.RETIRED_KEY) for kind in AnomalyKind}
    assert value("sidecar_usage_dropped_total") == 7
    assert b"sidecar_unusual_total" in generate_latest(registry)
