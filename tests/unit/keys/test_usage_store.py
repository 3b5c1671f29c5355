"""Stored use: added, read, merged by day, deleted."""

import sqlite3
from dataclasses import replace

import pytest

from sidecar.store.store import SqliteStore
from sidecar.store.usage import MOST_NETWORKS
from sidecar.usage.anomalies import Anomaly, AnomalyKind
from sidecar.usage.recorder import DAY, HOUR, Earlier, LastUse, UsageFilter, UsageRow, UsageTotal
from tests.unit.keys.making import ANN, NOW_US, Clock, a_key

TODAY = NOW_US - NOW_US % DAY
REFUSED = {"insufficient_scope": 2, "quota_exceeded": 3}
ALL = {"since": 0, "until": TODAY + 10 * DAY}


def row(at: int, count: int = 1, *, key_id: str = "key_1", route: str = "GET /a", status_class: int = 2) -> UsageRow:
    return UsageRow(key_id=key_id, at=at, route=route, status_class=status_class, count=count)


@pytest.fixture
async def week(store: SqliteStore) -> list[UsageRow]:
    """Ten requests in each of two hours of seven days."""
    rows = [row(TODAY - day * DAY + hour * HOUR, 10) for day in range(6, -1, -1) for hour in (1, 13)]
    await store.usage.add(rows)
    return rows


async def test_counts_of_the_same_place_are_added(store: SqliteStore) -> None:
    await store.usage.add([row(TODAY, 2), row(TODAY, 3, status_class=4)])
    await store.usage.add([row(TODAY, 5)])
    assert await store.usage.counts(UsageFilter(**ALL)) == [
        row(TODAY, 7, key_id=""),
        row(TODAY, 3, key_id="", status_class=4),
    ]


async def test_usage_is_read_for_a_key_for_some_for_a_tenant_and_for_all(store: SqliteStore) -> None:
    ours, theirs = a_key(tenant="acme"), a_key(tenant="other")
    await store.keys.add([ours, theirs], actor=ANN)
    await store.usage.add([row(TODAY, 1, key_id=ours.id), row(TODAY, 2, key_id=theirs.id), row(TODAY, 4)])
    assert await store.usage.counts(UsageFilter(key_id=ours.id, **ALL)) == [row(TODAY, 1, key_id=ours.id)]
    some = await store.usage.counts(UsageFilter(key_ids=(ours.id, "key_1"), **ALL))
    assert sorted((one.key_id, one.count) for one in some) == sorted([(ours.id, 1), ("key_1", 4)])
    assert await store.usage.counts(UsageFilter(tenant="other", **ALL)) == [row(TODAY, 2, key_id="")]
    assert await store.usage.counts(UsageFilter(key_id=ours.id, tenant="other", **ALL)) == []
    assert await store.usage.counts(UsageFilter(key_ids=(), **ALL)) == []
    assert await store.usage.counts(UsageFilter(**ALL)) == [row(TODAY, 7, key_id="")]


async def test_totals_include_the_peak_hour_and_day(store: SqliteStore, week: list[UsageRow]) -> None:
    refused = replace(row(TODAY, 3, status_class=4), reason="insufficient_scope")
    await store.usage.add([row(TODAY + HOUR, 4, status_class=5), refused, row(TODAY, 1, key_id="key_2")])
    [allowed, lacking] = await store.usage.totals(["key_1"], **ALL)
    assert allowed == UsageTotal(key_id="key_1", route="GET /a", reason="", count=144, most_in_hour=14, most_in_day=24)
    assert (lacking.reason, lacking.count, lacking.most_in_hour, lacking.most_in_day) == ("insufficient_scope", 3, 3, 3)
    both = await store.usage.totals(["key_1", "key_2"], **ALL)
    assert [one.key_id for one in both] == ["key_1", "key_1", "key_2"]
    assert sum(one.count for one in await store.usage.totals([""], **ALL)) == 148
    assert await store.usage.totals([], **ALL) == ()


async def test_totals_of_old_days_are_of_their_first_hour(store: SqliteStore, week: list[UsageRow]) -> None:
    await store.usage.roll_up(TODAY - 2 * DAY, most=100)
    since = week[2].at + 5
    [total] = await store.usage.totals(["key_1"], since=since, until=TODAY + DAY)
    assert (total.count, total.most_in_hour, total.most_in_day) == (120, 20, 20)
    [late] = await store.usage.totals(["key_1"], since=week[-1].at + 5, until=TODAY + DAY)
    assert (late.count, late.most_in_hour) == (10, 10)


async def test_the_span_begins_with_the_hour_that_holds_its_start(store: SqliteStore, week: list[UsageRow]) -> None:
    first, last = week[2], week[5]
    wanted = UsageFilter(key_id="key_1", since=first.at + 5, until=last.at)
    assert await store.usage.counts(wanted) == week[2:5]
    wanted = UsageFilter(key_id="key_1", since=first.at + 5, until=last.at + 1)
    assert await store.usage.counts(wanted) == week[2:6]


async def test_usage_by_day_sums_the_hours(store: SqliteStore, week: list[UsageRow]) -> None:
    assert len(week) == 14
    by_day = await store.usage.counts(
        UsageFilter(key_id="key_1", by="day", since=TODAY - 2 * DAY + HOUR, until=TODAY + DAY)
    )
    assert by_day == [row(TODAY - day * DAY, 20) for day in (2, 1, 0)]


async def test_rolling_up_loses_nothing_and_leaves_newer_hours(store: SqliteStore, week: list[UsageRow]) -> None:
    whole = await store.usage.counts(UsageFilter(key_id="key_1", by="day", **ALL))
    all_keys = await store.usage.counts(UsageFilter(by="day", **ALL))
    assert [one.count for one in all_keys] == [one.count for one in whole]
    before = TODAY - 3 * DAY
    assert await store.usage.roll_up(before, most=4) == 4
    assert await store.usage.counts(UsageFilter(by="day", **ALL)) == all_keys
    assert await store.usage.counts(UsageFilter(key_id="key_1", by="day", **ALL)) == whole
    # A count that comes late is not lost either.
    await store.usage.add([row(TODAY - 6 * DAY + HOUR, 1)])
    steps = [await store.usage.roll_up(before, most=4) for _ in range(5)]
    # Of six hours of one key, and as many sums beside them, eight were left; two are new.
    assert (sum(steps), max(steps), steps[-1]) == (10, 4, 0)
    assert await store.usage.counts(UsageFilter(key_id="key_1", **ALL)) == [
        row(TODAY - 6 * DAY, 21),
        row(TODAY - 5 * DAY, 20),
        row(TODAY - 4 * DAY, 20),
        *week[6:],
    ]


async def test_pruning_forgets_what_is_older_and_nothing_else(store: SqliteStore, week: list[UsageRow]) -> None:
    key = a_key()
    await store.keys.add([key], actor=ANN)
    for at, network in ((TODAY - 5 * DAY, "192.0.2.0/24"), (TODAY, "198.51.100.0/24")):
        await store.usage.touch({key.id: LastUse(at=at, networks=(network,))})
    events = [
        Anomaly(kind=AnomalyKind.NEW_NETWORK, key_id=key.id, at=at, address="", detail=str(at))
        for at in (TODAY - 5 * DAY, TODAY)
    ]
    await store.anomalies.add(events)
    await store.usage.roll_up(TODAY - 2 * DAY, most=100)
    steps = [await store.usage.prune(TODAY - 3 * DAY, most=2) for _ in range(4)]
    # Three days of a key and of all keys, at most two at a time; and in the first step a network and an event.
    assert steps == [4, 2, 2, 0]
    assert await store.usage.counts(UsageFilter(key_id="key_1", **ALL)) == [row(TODAY - 3 * DAY, 20), *week[8:]]
    assert await store.anomalies.newest(limit=10) == events[1:]
    found = await store.usage.touch({key.id: LastUse(at=TODAY + 1, networks=("192.0.2.0/24", "198.51.100.0/24"))})
    assert found[key.id].new_networks == ("192.0.2.0/24",)


async def test_touch_returns_what_was_stored_before(store: SqliteStore) -> None:
    key = a_key()
    await store.keys.add([key], actor=ANN)
    first = LastUse(at=NOW_US, address="192.0.2.1", agent="curl/8", networks=("192.0.2.0/24",))
    told = await store.usage.touch({key.id: first, "key_gone": first})
    assert told == {key.id: Earlier(used_at=None, created_at=key.created_at, new_networks=())}
    told = await store.usage.touch({key.id: LastUse(at=NOW_US + 1, networks=("192.0.2.0/24", "203.0.113.0/24"))})
    assert told == {key.id: Earlier(used_at=NOW_US, created_at=key.created_at, new_networks=("203.0.113.0/24",))}


async def test_an_earlier_use_that_is_written_later_changes_nothing(store: SqliteStore) -> None:
    key = a_key()
    await store.keys.add([key], actor=ANN)
    await store.usage.touch({key.id: LastUse(at=NOW_US, address="192.0.2.1", agent="new")})
    await store.usage.touch({key.id: LastUse(at=NOW_US - 1, address="192.0.2.2", agent="old")})
    found = await store.keys.get(key.id)
    assert found is not None
    assert (found.last_used_at, found.last_used_address, found.last_used_agent) == (NOW_US, "192.0.2.1", "new")


async def test_a_key_used_from_everywhere_has_no_new_networks(store: SqliteStore) -> None:
    key = a_key()
    await store.keys.add([key], actor=ANN)
    networks = [f"10.0.{number}.0/24" for number in range(MOST_NETWORKS + 5)]
    told = [(await store.usage.touch({key.id: LastUse(at=NOW_US, networks=(one,))}))[key.id] for one in networks]
    assert [one.new_networks for one in told[1:MOST_NETWORKS]] == [(one,) for one in networks[1:MOST_NETWORKS]]
    assert all(one.new_networks == () for one in told[MOST_NETWORKS:])


async def test_the_networks_of_a_key_are_bounded_however_many_come_at_once(store: SqliteStore, path: str) -> None:
    key = a_key()
    await store.keys.add([key], actor=ANN)
    for start in range(0, 200, 50):
        networks = tuple(f"10.0.{number}.0/24" for number in range(start, start + 50))
        await store.usage.touch({key.id: LastUse(at=NOW_US, networks=networks)})
    with sqlite3.connect(path) as connection:
        [(stored,)] = connection.execute("SELECT count(*) FROM key_network").fetchall()
    connection.close()
    assert stored == MOST_NETWORKS


async def test_unusual_events_are_read_newest_first(store: SqliteStore) -> None:
    events = [
        Anomaly(kind=kind, key_id=None, at=NOW_US + number, address="192.0.2.1", detail="d")
        for number, kind in enumerate(AnomalyKind)
    ]
    await store.anomalies.add(events)
    assert await store.anomalies.newest(limit=3) == events[:-4:-1]


async def test_a_tenants_unusual_events_are_found_behind_any_number_of_others(store: SqliteStore) -> None:
    ours, theirs = a_key(tenant="acme"), a_key(tenant="other")
    await store.keys.add([ours, theirs], actor=ANN)
    whose = (ours.id, *([theirs.id, None] * 50))
    events = [
        Anomaly(kind=AnomalyKind.REFUSALS, key_id=key_id, at=TODAY + number, address="", detail=str(number))
        for number, key_id in enumerate(whose)
    ]
    await store.anomalies.add(events)
    assert await store.anomalies.newest(limit=3, tenant="acme") == [events[0]]
    assert await store.anomalies.newest(limit=3, tenant="nobody") == []
    assert [event.detail for event in await store.anomalies.newest(limit=3)] == ["100", "99", "98"]


async def test_the_last_use_is_never_in_the_future_after_the_clock_was_set_back(
    store: SqliteStore, clock: Clock
) -> None:
    key = a_key()
    await store.keys.add([key], actor=ANN)
    await store.usage.touch({key.id: LastUse(at=NOW_US, address="192.0.2.1")})
    clock.now -= HOUR / 1_000_000
    for at, stored in ((NOW_US, NOW_US - HOUR), (NOW_US - HOUR - 5, NOW_US - HOUR)):
        await store.usage.touch({key.id: LastUse(at=at, address="192.0.2.2")})
        found = await store.keys.get(key.id)
        assert (found.last_used_at, found.last_used_address) == (stored, "192.0.2.2")


async def test_counts_by_reason_add_up_to_those_by_class_and_outlive_the_sum_by_day(store: SqliteStore) -> None:
    refused = [replace(row(TODAY, count, status_class=4), reason=reason) for reason, count in REFUSED.items()]
    await store.usage.add([row(TODAY, 5), *refused])
    for key_id in ("key_1", None):
        for _ in range(2):
            wanted = UsageFilter(key_id=key_id, **ALL)
            by_class = {(one.status_class, one.reason): one.count for one in await store.usage.counts(wanted)}
            assert by_class == {(2, ""): 5, (4, ""): 5}
            with_reasons = await store.usage.counts(replace(wanted, with_reasons=True))
            assert {one.reason: one.count for one in with_reasons} == {"": 5, **REFUSED}
            await store.usage.roll_up(TODAY + DAY, 100)


async def test_sidecars_that_count_apart_are_counted_until_they_end_or_fall_silent(
    store: SqliteStore, clock: Clock
) -> None:
    quotas = store.quotas
    assert [await quotas.present(name) for name in ("a", "b", "a")] == [1, 2, 2]
    clock.now += 15
    assert await quotas.present("a") == 2
    clock.now += 10
    assert await quotas.present("a") == 1
    assert await quotas.present("b") == 2
    await quotas.absent("a")
    assert await quotas.present("b") == 1


async def test_records_of_sidecars_are_not_quotas(store: SqliteStore) -> None:
    await store.quotas.present("a")
    await store.quotas.save([("general", "[]", "{}", NOW_US + 5_000_000)])
    assert [name for name, *_ in await store.quotas.load(most=10)] == ["general"]
    await store.quotas.trim(most=0)
    assert await store.quotas.load(most=10) == []
    await store.quotas.save([("general", "[]", "{}", NOW_US + 5_000_000)])
    await store.quotas.forget()
    assert await store.quotas.load(most=10) == []
    assert await store.quotas.present("b") == 2
