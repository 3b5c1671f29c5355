"""From recorded requests to rights that keys do not need."""

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.app import make_gate
from sidecar.config.build.config import Config
from sidecar.config.load import load
from sidecar.core.apikey import Hasher
from sidecar.core.errors import Reason
from sidecar.core.model import Allow, ApiKey
from sidecar.core.units import rfc3339
from sidecar.gate.explain import Question, explain
from sidecar.limiter.memory import MemoryLimiter
from sidecar.rehearsal.recorded import RecordedRequest
from sidecar.rehearsal.suggestions.suggest import KeySuggestion, Record, Suggestions, change_command
from sidecar.rehearsal.suggestions.use import MOST_KEYS, Use
from sidecar.usage.recorder import DAY, UsageTotal
from tests.unit.keys.making import NOW_US, a_key

YAML = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
keys:
  pass_through: [{header: Authorization, scheme: Bearer}]
scopes:
  read: Read
  write: {includes: [read]}
  admin: {includes: [write]}
  bills: Bills
  "videos:list": List
  "videos:cut": Cut
quotas:
  minutely: {limit: 100, per: minute}
  daily: {limit: 1000, per: day}
  sliding: {limit: 1000, per: day, window: sliding}
  shared: {limit: 10, per: day, by: tenant}
plans:
  endless: {daily: unlimited}
routes:
  - GET /items/**: {scopes: [read], pass_through: false}
  - GET /items/{id}: {scopes: [bills], pass_through: false}
  - POST /items/**: {all_scopes: [write], pass_through: false}
  - GET /o/{org}/**: {scopes: [admin, "videos:list"], tenant: org, pass_through: false}
  - GET /videos/**: {scopes: ["videos:list", "videos:cut"], quotas: [minutely, {quota: daily, cost: 2}]}
  - GET /shared: {quotas: [shared, sliding]}
  - GET /public/**: {public: true}
  - "* /closed/**": {deny: true}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return loaded(tmp_path_factory.mktemp("config"))


def loaded(folder: Path, text: str = YAML) -> Config:
    file = folder / "sidecar.yaml"
    file.write_text(text, encoding="utf-8")
    return load(str(file), overrides={}, environ={})


def an_old_key(*scopes: str, **values: object) -> ApiKey:
    return replace(a_key(tenant="acme"), created_at=NOW_US - 400 * DAY, scopes=scopes, **values)


def request(
    key: ApiKey | None, method: str = "GET", path: str = "/items/1/x", at: int = NOW_US - DAY, **values: object
):  # type: ignore[no-untyped-def]
    fields = {"status": 200, "config": "3f2a91c0bd12", "time": rfc3339(at), **values}
    return RecordedRequest(method=method, path=path, key_id=key and key.id, **fields)


def suggested(config: Config, key: ApiKey, requests: Iterable[RecordedRequest], **record: object) -> KeySuggestion:
    use = used(config, [key], requests)
    known = {"since": NOW_US - 90 * DAY, "until": NOW_US, "complete": not use.sampled, **record}
    return Suggestions(config, Record(**known), now=NOW_US).of_key(key, use.of(key.id))  # type: ignore[arg-type]


def used(config: Config, keys: Sequence[ApiKey], requests: Iterable[RecordedRequest]) -> Use:
    use = Use(config)
    for key in keys:
        use.add_key(key)
    use.add_log(requests, since=NOW_US - 90 * DAY, progress=lambda _: None)
    return use


METHODS = st.sampled_from(("GET", "POST", "HEAD", "get"))
PATHS = st.sampled_from(
    ("/items/1", "/items/1/", "/items/1/x", "/items//1", "/items/1%2Fx", "/items/..", "/o/acme/x", "/o/other/x",
     "/o/acme", "/videos/1", "/videos/%2e%2e/items/1", "/public/1", "/closed/1", "/nowhere", "/shared", "/%zz")
)  # fmt: skip
SCOPES = ("read", "write", "admin", "bills", "videos:list", "videos:cut", "*", "videos:*", "lost")


@settings(max_examples=60, deadline=None)
@given(
    scopes=st.lists(st.sampled_from(SCOPES), unique=True, max_size=5),
    tenant=st.sampled_from(("acme", "*", None)),
    asked=st.lists(st.tuples(METHODS, PATHS), min_size=1, max_size=8, unique=True),
)
def test_the_suggested_scopes_allow_every_request_that_was_allowed(
    config: Config, scopes: Sequence[str], tenant: str | None, asked: Sequence[tuple[str, str]]
) -> None:
    key = an_old_key(*scopes, tenant=tenant)
    passed = [one for one in asked if allows(config, key, *one)]
    requests = [request(key, method, path) for method, path in passed]
    found = suggested(config, key, requests, fewest_requests=1)
    assert found.requests == len(passed) and found.changed == 0
    if not passed:
        assert found.verdict == "unused"
        return
    assert found.verdict in ("narrow", "fits")
    narrowed = replace(key, scopes=found.needed)
    assert config.catalogue.expand(found.needed) <= config.catalogue.expand(key.scopes)
    assert [one for one in passed if not allows(config, narrowed, *one)] == []
    for dropped in found.needed:
        fewer = replace(key, scopes=tuple(name for name in found.needed if name != dropped))
        assert not all(allows(config, fewer, *one) for one in passed)


def allows(config: Config, key: ApiKey, method: str, path: str) -> bool:
    """The decision of the gate itself."""
    explanation = explain(
        Question(method=method, target=path, key=replace(key, created_at=0)),
        config,
        lambda keys, limiter: make_gate(config, keys, limiter, Hasher()),
        MemoryLimiter(),
        randbelow=secrets.randbelow,
    )
    return isinstance(asyncio.run(explanation).decision, Allow)


def test_a_key_is_narrowed_to_what_it_used(config: Config) -> None:
    key = an_old_key("admin", "bills", "videos:*")
    found = suggested(config, key, [request(key)] * 30)
    assert (found.verdict, found.needed, found.holds) == ("narrow", ("read",), 6)
    assert (found.used, found.unused, found.requests, found.smallest) == (("admin",), ("bills", "videos:*"), 30, True)


def test_a_key_that_needs_all_its_scopes_is_not_over_privileged(config: Config) -> None:
    key = an_old_key("read")
    assert suggested(config, key, [request(key)] * 30).verdict == "fits"


def test_a_wildcard_becomes_the_scopes_that_it_includes(config: Config) -> None:
    key = an_old_key("videos:*")
    both = [request(key, path="/videos/1")] * 30
    assert suggested(config, key, both).needed == ("videos:cut",)
    text = YAML.replace('scopes: ["videos:list", "videos:cut"]', 'all_scopes: ["videos:list", "videos:cut"]')
    all_of_them = loaded(Path(config.path).parent, text)
    found = suggested(all_of_them, key, both)
    assert (found.verdict, found.needed) == ("narrow", ("videos:cut", "videos:list"))


def test_requests_refused_for_a_missing_scope_are_reported_and_not_granted(config: Config) -> None:
    key = an_old_key("bills", "read")
    refused = [request(key, "POST", status=403, reason="insufficient_scope")] * 12
    found = suggested(config, key, [*[request(key)] * 30, *refused])
    assert found.needed == ("read",)
    [lack] = found.refused
    assert (lack.route, lack.lacks, lack.count) == ("POST /items/**", ("write",), 12)


def test_a_refusal_already_fixed_by_a_granted_scope_is_not_reported(config: Config) -> None:
    key = an_old_key("write")
    refused = [request(key, "POST", status=403, reason="insufficient_scope")] * 12
    assert suggested(config, key, [*[request(key)] * 30, *refused]).refused == ()


@pytest.mark.parametrize("reason", sorted(Reason))
def test_an_allowed_request_counts_whatever_its_response(config: Config, reason: Reason) -> None:
    key = an_old_key("admin")
    after = {Reason.QUOTA_EXCEEDED, Reason.LIMITER_UNAVAILABLE, Reason.UPSTREAM_BUSY, Reason.UPSTREAM_INVALID,
             Reason.UPSTREAM_TIMEOUT, Reason.UPSTREAM_UNREACHABLE, Reason.LOOP_DETECTED, Reason.INTERNAL,
             Reason.BODY_TOO_LARGE, Reason.REQUEST_TIMEOUT, Reason.UNSUPPORTED_CODING}  # fmt: skip
    found = suggested(config, key, [request(key, status=500, reason=reason.value)])
    assert found.requests == (1 if reason in after else 0)


def test_an_observed_request_is_reported_as_a_refusal_and_proves_no_need(config: Config) -> None:
    key = an_old_key("read", "bills")
    passed = [request(key)] * 30
    observed = [request(key, "POST", would_deny="insufficient_scope")] * 12
    refused = [request(key, "POST", status=403, reason="insufficient_scope")] * 3
    found = suggested(config, key, [*passed, *observed, *refused])
    assert (found.verdict, found.needed, found.requests, found.changed) == ("narrow", ("read",), 30, 0)
    [lack] = found.refused
    assert (lack.route, lack.lacks, lack.count, lack.observed) == ("POST /items/**", ("write",), 3, 12)
    alone = suggested(config, key, observed)
    assert (alone.verdict, alone.why) == ("undecided", "all that it did would have been refused")


@pytest.mark.parametrize(
    ("demands", "missing"),
    [
        ("scopes: [bills, read]", "bills or read"),
        ("all_scopes: [bills, read]", "bills and read"),
        ("all_scopes: [bills], scopes: [read, write]", "bills and read or write"),
    ],
)
def test_it_is_reported_whether_one_of_several_scopes_is_enough(tmp_path: Path, demands: str, missing: str) -> None:
    config = loaded(tmp_path, YAML + f"  - GET /x: {{{demands}}}\n")
    key = an_old_key()
    [lack] = of_totals(config, key, total(key, "GET /x", 3, reason="insufficient_scope")).refused
    assert lack.missing == missing


def test_a_route_on_which_all_was_observed_let_nothing_pass(config: Config) -> None:
    key = an_old_key()
    use = Use(config)
    use.add_key(key)
    observed = [request(key, "POST", would_deny="insufficient_scope")] * 2
    quota = [request(key, path="/shared", would_deny="quota_exceeded")]
    use.add_log([*observed, *quota], since=0, progress=lambda _: None)
    record = Record(since=0, until=NOW_US)
    idle = {one.route.name: one for one in Suggestions(config, record, now=NOW_US).idle_routes(use)}
    assert (idle["POST /items/**"].refused, idle["POST /items/**"].observed) == (0, 2)
    assert "GET /shared" not in idle


def test_requests_that_would_be_refused_now_are_skipped_and_reported(config: Config) -> None:
    key = an_old_key("read", "bills")
    gone = [request(key, path=path) for path in ("/nowhere", "/o/other/x", "/closed/1")]
    found = suggested(config, key, [*[request(key)] * 30, *gone])
    assert (found.verdict, found.needed, found.changed) == ("narrow", ("read",), 3)
    assert suggested(config, key, gone).verdict == "undecided"


def test_what_could_not_be_logged_in_full_counts_by_its_route(config: Config) -> None:
    key = an_old_key("admin")
    hidden = [request(key, "POST", path="/items/" + "x" * 2048, route="POST /items/**")] * 30
    elsewhere = [request(key, path="http://api.example.com/videos/1", route="GET /videos/**")] * 2
    found = suggested(config, key, [*hidden, *elsewhere])
    assert (found.needed, found.requests, found.changed) == (("write",), 30, 2)


TOO_EARLY = [
    pytest.param({"created_at": NOW_US - 5 * DAY}, 30, "issued 2027-01-10, after the record begins", id="young"),
    pytest.param({}, 19, "only 19 requests on record", id="few-requests"),
    pytest.param(
        {"created_at": NOW_US - 5 * DAY}, 0, "issued 2027-01-10, after the record begins", id="young-and-unused"
    ),
]


@pytest.mark.parametrize(("values", "number", "why"), TOO_EARLY)
def test_it_is_too_early_to_say(config: Config, values: dict[str, int], number: int, why: str) -> None:
    key = replace(an_old_key("admin"), **values)
    found = suggested(config, key, [request(key)] * number)
    assert (found.verdict, found.why) == ("too_early", why)


@pytest.mark.parametrize(
    ("last_used_at", "verdict", "why"),
    [
        (None, "unused", "never used"),
        (NOW_US - 200 * DAY, "unused", "last used 2026-06-29"),
        (NOW_US - 2 * DAY, "undecided", "last used 2027-01-13, of which there is no record"),
    ],
)
def test_a_key_without_requests_should_be_reviewed(
    config: Config, last_used_at: int | None, verdict: str, why: str
) -> None:
    found = suggested(config, an_old_key("read", last_used_at=last_used_at), [])
    assert (found.verdict, found.why) == (verdict, why)


def test_in_a_sample_nothing_counts_as_unused(config: Config) -> None:
    key = an_old_key("admin", "bills")
    sample = [request(key, sampled=0.1)] * 30
    found = suggested(config, key, sample)
    assert (found.verdict, found.quotas) == ("undecided", ())
    assert suggested(config, key, sample, complete=True).verdict == "narrow"


def test_the_current_sample_rate_says_nothing_about_older_lines(config: Config, tmp_path: Path) -> None:
    sampling = loaded(tmp_path, YAML + "access_log: {sample_successes: 0.5}\n")
    key = an_old_key("admin")
    assert suggested(sampling, key, [request(key, config=None)] * 30).verdict == "undecided"


def test_forbidden_values_are_not_suggested(config: Config, tmp_path: Path) -> None:
    strict = loaded(tmp_path, YAML.replace("keys:\n", "keys:\n  require: [scopes]\n"))
    key = an_old_key("bills")
    public = [request(key, path="/public/1")] * 30
    assert suggested(config, key, public).needed == ()
    found = suggested(strict, key, public)
    assert found.verdict == "undecided" and "scopes" in found.why


# Quotas.


def every(seconds: float, number: int, key: ApiKey, path: str = "/videos/1") -> list[RecordedRequest]:
    start = NOW_US - 10 * DAY
    return [request(key, path=path, at=start + int(at * seconds * 1_000_000)) for at in range(number)]


def test_a_quota_far_above_a_keys_use_is_reported_with_its_peak(config: Config) -> None:
    key = an_old_key("videos:list")
    fits = {one.quota: one for one in suggested(config, key, every(61, 40, key)).quotas}
    assert (fits["minutely"].fit, fits["minutely"].limit, fits["minutely"].most) == ("far_above", 100, 1)
    assert (fits["daily"].limit, fits["daily"].most, fits["daily"].requests) == (1000, 80, 40)


def test_a_used_or_unlimited_quota_is_not_reported(config: Config) -> None:
    key = an_old_key("videos:list", plan="endless")
    assert suggested(config, key, every(1, 40, key)).quotas == ()


def test_a_sliding_window_contains_at_most_two_clock_windows(config: Config) -> None:
    key = an_old_key()
    fits = {one.quota: one.most for one in suggested(config, key, every(3600, 30, key, "/shared")).quotas}
    assert fits == {"sliding": 30}


def test_a_quota_that_refuses_a_tenth_of_requests_is_reported(config: Config) -> None:
    key = an_old_key("videos:list")
    refused = [request(key, path="/videos/1", status=429, reason="quota_exceeded")] * 10
    fits = suggested(config, key, [*every(1, 90, key), *refused]).quotas
    assert [(one.quota, one.fit, one.most, one.requests) for one in fits] == [
        ("daily", "often_hit", 10, 100),
        ("minutely", "often_hit", 10, 100),
    ]
    assert suggested(config, key, [*every(1, 91, key), *refused[:9]]).quotas == ()


@pytest.mark.parametrize("how", [{"status": 429, "reason": "quota_exceeded"}, {"would_deny": "quota_exceeded"}])
def test_of_the_quotas_of_a_route_only_the_one_that_the_log_names_has_refused(
    config: Config, how: dict[str, object]
) -> None:
    key = an_old_key("videos:list")
    named = [request(key, path="/videos/1", quota="minutely", **how)] * 10
    gone = [request(key, path="/videos/1", quota="of-old", **how)] * 10
    fits = suggested(config, key, [*every(1, 80, key), *named, *gone]).quotas
    assert [(one.quota, one.fit, one.most, one.requests) for one in fits] == [("minutely", "often_hit", 10, 100)]


# Routes, and keys that are not known.


def test_routes_without_allowed_requests_are_reported_with_their_refusals(config: Config) -> None:
    key = an_old_key("read")
    requests = [request(key), request(None, path="/public/1"), request(None, "POST", status=401, reason="no_route")]
    use = used(config, [key], requests)
    record = Record(since=NOW_US - 90 * DAY, until=NOW_US)
    idle = {one.route.name: one.refused for one in Suggestions(config, record, now=NOW_US).idle_routes(use)}
    assert idle == {
        "GET /items/{id}": 0,
        "POST /items/**": 1,
        "GET /o/{org}/**": 0,
        "GET /videos/**": 0,
        "GET /shared": 0,
    }
    counted_by_key = replace(record, with_public=False)
    names = [one.route.name for one in Suggestions(config, counted_by_key, now=NOW_US).idle_routes(Use(config))]
    assert names == ["GET /items/**", "GET /items/{id}", "POST /items/**", "GET /o/{org}/**"]
    sample = replace(record, complete=False)
    assert list(Suggestions(config, sample, now=NOW_US).idle_routes(use)) == []


def test_without_a_store_the_log_provides_the_keys_scopes(config: Config) -> None:
    use, key = Use(config, from_log=True), an_old_key()
    old = request(key, config=None)
    lines = [old, *[request(key, scopes=("admin", "bills"), tenant="acme")] * 30]
    use.add_log(lines, since=0, progress=lambda _: None)
    [known] = use.keys
    assert (known.id, known.scopes, known.tenant, use.unknown_keys) == (key.id, ("admin", "bills"), "acme", 1)
    record = Record(since=0, until=NOW_US, with_last_use=False)
    assert Suggestions(config, record, now=NOW_US).of_key(known, use.of(known.id)).needed == ("read",)


def test_a_request_that_cannot_be_replayed_counts_for_its_route(config: Config) -> None:
    hidden = [request(None, path="/items/" + "x" * 2048, route=name) for name in ("GET /shared", "GET /gone", None)]
    assert dict(used(config, [], hidden).routes) == {"GET /shared": 1}


def test_other_ids_in_a_log_take_no_memory(config: Config) -> None:
    use = used(config, [an_old_key()], (request(an_old_key()) for _ in range(100)))
    assert (len(list(use.keys)), use.unknown_keys) == (1, 100)
    assert MOST_KEYS < 1_000_000


# From counts.


def total(key: ApiKey, route: str, count: int, *, reason: str = "", hour: int = 1, day: int = 1) -> UsageTotal:
    return UsageTotal(key_id=key.id, route=route, reason=reason, count=count, most_in_hour=hour, most_in_day=day)


def of_totals(config: Config, key: ApiKey, *totals: UsageTotal) -> KeySuggestion:
    use = Use(config)
    use.add_key(key)
    for each in totals:
        use.add_total(each)
    return Suggestions(config, Record(since=NOW_US - 90 * DAY, until=NOW_US), now=NOW_US).of_key(key, use.of(key.id))


def test_counts_lead_to_the_same_scopes(config: Config) -> None:
    key = an_old_key("admin", "bills")
    lost = total(key, "GET /gone", 4)
    lack = total(key, "GET /videos/**", 3, reason="insufficient_scope")
    found = of_totals(config, key, total(key, "GET /items/**", 50), total(key, "GET /o/{org}/**", 1), lost, lack)
    assert (found.verdict, found.needed, found.requests, found.changed) == ("narrow", ("admin",), 51, 4)
    assert [(one.route, one.count) for one in found.refused] == [("GET /videos/**", 3)]


def test_counts_of_observed_requests_prove_no_need_for_scopes(config: Config) -> None:
    key = an_old_key("read", "bills")
    passed = total(key, "GET /items/**", 30)
    observed = total(key, "POST /items/**", 12, reason="would_deny:insufficient_scope")
    refused = total(key, "POST /items/**", 3, reason="insufficient_scope")
    nowhere = total(key, "(none)", 2, reason="would_deny:no_route")
    over = total(key, "GET /items/**", 5, reason="would_deny:quota_exceeded")
    found = of_totals(config, key, passed, observed, refused, nowhere, over)
    assert (found.verdict, found.needed, found.requests, found.changed) == ("narrow", ("read",), 35, 0)
    [lack] = found.refused
    assert (lack.route, lack.lacks, lack.count, lack.observed) == ("POST /items/**", ("write",), 3, 12)
    use = Use(config)
    for each in (passed, observed, over):
        use.add_route_total(each)
    idle = {
        one.route.name: one for one in Suggestions(config, Record(since=0, until=NOW_US), now=NOW_US).idle_routes(use)
    }
    assert (idle["POST /items/**"].refused, idle["POST /items/**"].observed) == (0, 12)
    assert "GET /items/**" not in idle


@pytest.mark.parametrize(
    ("route", "hour", "day", "most"),
    [
        ("GET /videos/**", 9, 40, {"minutely": 9, "daily": 80}),
        ("GET /videos/**", 10, 40, {"daily": 80}),
        ("GET /shared", 20, 49, {"sliding": 98}),
        ("GET /shared", 20, 50, {}),
    ],
)
def test_counts_limit_the_peak_of_a_quotas_period(
    config: Config, route: str, hour: int, day: int, most: dict[str, int]
) -> None:
    key = an_old_key("videos:list")
    found = of_totals(config, key, total(key, route, 1000, hour=hour, day=day))
    assert {one.quota: one.most for one in found.quotas} == most


@pytest.mark.parametrize(
    ("scopes", "options", "command"),
    [
        (("read", "videos:cut"), (), "sidecar keys change key_1 --scope read --scope videos:cut"),
        ((), ("-c", "my file.yaml"), "sidecar keys change -c 'my file.yaml' key_1 --no-scopes"),
        (("a$(reboot)",), (), "sidecar keys change key_1 --scope 'a$(reboot)'"),
    ],
)
def test_the_command_is_quoted_for_a_shell(scopes: Sequence[str], options: Sequence[str], command: str) -> None:
    assert change_command("key_1", scopes, options) == command
