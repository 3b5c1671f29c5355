"""What changes between two configurations: by the effect on requests, not by the text."""

import random
from pathlib import Path

import pytest

from sidecar.config.build.config import Config
from sidecar.config.errors import ConfigError
from sidecar.core.routing import KNOWN_METHODS
from sidecar.rehearsal.diff.changes import Change, Detail
from sidecar.rehearsal.diff.outcomes import Caller, Judge, parsed
from sidecar.rehearsal.diff.report import compare
from sidecar.rehearsal.recorded import RecordedRequest
from tests.unit.rehearsal.diff.configuring import KEYS, SCOPES, Configured

ITEMS = "- GET /items/**: {scopes: [read]}\n"


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    return Configured(tmp_path)


def told(old: Config, new: Config) -> list[tuple[str, str]]:
    return [(change.effect, change.what) for change in compare(old, new).changes]


SAME = {
    "another order": (
        "- GET /a: {}\n- POST /b: {scopes: [write]}\n",
        "- POST /b: {scopes: [write]}\n- GET /a: {}\n",
    ),
    "a group": (
        "- GET /items: {scopes: [read]}\n- POST /items/{id}: {scopes: [admin]}\n",
        "- path: /items\n  scopes: [read]\n  routes:\n  - GET: {}\n  - POST /{id}: {scopes: [admin]}\n",
    ),
    "defaults that are written out": (
        "- GET /a: {}\n",
        "- GET /a: {public: false, pass_through: true, cache: private}\n",
    ),
    "other names of parameters": (
        '- "* /orgs/{org}/{id}": {tenant: org}\n',
        '- "* /orgs/{company}/{item}": {tenant: company}\n',
    ),
    "scopes that another one includes": (
        "- GET /a: {scopes: [read, write]}\n",
        "- GET /a: {scopes: [read]}\n",
    ),
    "all of scopes of which one includes the other": (
        "- GET /a: {all_scopes: [read, write]}\n",
        "- GET /a: {all_scopes: [write]}\n",
    ),
    "one scope of one": ("- GET /a: {scopes: [read]}\n", "- GET /a: {all_scopes: [read]}\n"),
    "methods one by one": ("- GET|POST /a: {}\n", "- GET /a: {}\n- POST /a: {}\n"),
    "a route that says what a wider one says": (
        ITEMS,
        ITEMS + "- GET /items/{id}/parts: {scopes: [read]}\n",
    ),
    "a denial of what no route names": (ITEMS, ITEMS + "- POST /items/**: {deny: true}\n"),
    "a quota named in the defaults": (
        "- GET /a: {quotas: [few]}\n- GET /b: {quotas: [few, {quota: many, cost: 2}]}\n",
        "- GET /a: {quotas: [{quota: few, cost: 1}]}\n- GET /b: {quotas: [{quota: many, cost: 2}, few]}\n",
    ),
}
QUOTAS = "quotas: {few: {limit: 3, per: hour}, many: {limit: 9, per: hour}}\n"


@pytest.mark.parametrize(("old", "new"), SAME.values(), ids=SAME)
def test_equivalent_settings_are_not_a_change(configured: Configured, old: str, new: str) -> None:
    more = KEYS + SCOPES + QUOTAS
    assert told(configured(old, more), configured(new, more)) == []
    assert told(configured(new, more), configured(old, more)) == []


CHANGED = {
    "a route more": (ITEMS, ITEMS + "- POST /items: {scopes: [write]}\n", [("opens", "POST /items")]),
    "a public route": (ITEMS, "- GET /items/**: {public: true}\n", [("opens", "GET /items/**")]),
    "another scope as well": (ITEMS, "- GET /items/**: {scopes: [read, admin]}\n", [("opens", "GET /items/**")]),
    "another scope": (ITEMS, "- GET /items/**: {scopes: [admin]}\n", [("opens and closes", "GET /items/**")]),
    "a scope that includes the old one": (ITEMS, "- GET /items/**: {scopes: [write]}\n", [("closes", "GET /items/**")]),
    "both scopes": (ITEMS, "- GET /items/**: {all_scopes: [read, admin]}\n", [("closes", "GET /items/**")]),
    "one environment": ("- GET /a: {}\n", "- GET /a: {environments: [live]}\n", [("closes", "GET /a")]),
    "no scope": (ITEMS, "- GET /items/**: {}\n", [("opens", "GET /items/**")]),
    "a hole": (ITEMS, ITEMS + "- GET /items/secret: {deny: true}\n", [("closes", "GET /items/secret")]),
    "a method less": ("- GET|POST|PUT /a: {}\n", "- GET /a: {}\n", [("closes", "POST|PUT /a")]),
    "every method": ("- GET /a: {}\n", '- "* /a": {}\n', [("opens", "(other methods) /a")]),
    "a method of its own": ("- GET /a: {}\n", "- GET|FETCH /a: {}\n", [("opens", "FETCH /a")]),
    "a segment that is bound": (
        '- "* /orgs/{org}/**": {}\n',
        '- "* /orgs/{org}/**": {tenant: org}\n',
        [("closes", "* /orgs/{org}/**")],
    ),
    "another segment that is bound": (
        '- "* /{a}/{b}": {tenant: a}\n',
        '- "* /{a}/{b}": {tenant: b}\n',
        [("opens and closes", "* /{a}/{b}")],
    ),
    "a verb": (
        "- POST /jobs/{id}: {}\n- POST /jobs/{id}:stop: {scopes: [admin]}\n",
        "- POST /jobs/{id}: {}\n",
        [("opens", "POST /jobs/{id}:stop"), ("opens", "POST /jobs/{id} (with a colon in {id})")],
    ),
    "what two patterns share": (
        '- GET /{a}/x: {}\n',
        "- GET /y/{b}: {scopes: [admin]}\n",
        [("opens", "GET /y/{b}"), ("closes", "GET /y/x"), ("closes", "GET /{a}/x")],
    ),
    "a path without its slash": (
        ITEMS,
        ITEMS + "- GET /items/{id}: {scopes: [admin]}\n",
        [("opens and closes", "GET /items/{id}"), ("closes", "GET /items/** (with a slash at its end)")],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), CHANGED.values(), ids=CHANGED)
def test_a_change_opens_or_closes_what_it_says(
    configured: Configured, old: str, new: str, expected: list[tuple[str, str]]
) -> None:
    before, after = configured(old), configured(new)
    assert sorted(told(before, after)) == sorted(expected)
    mirrored = {"opens": "closes", "closes": "opens"}
    assert sorted(told(after, before)) == sorted((mirrored.get(effect, effect), what) for effect, what in expected)


def change(old: Config, new: Config) -> Change:
    [found] = compare(old, new).changes
    return found


def details(found: Change) -> dict[str, tuple[str, str]]:
    return {detail.name: (detail.before, detail.after) for detail in found.details}


def test_a_change_names_both_locations_and_who_gains_and_loses_access(configured: Configured) -> None:
    found = change(configured(ITEMS), configured("- POST /b: {deny: true}\n- GET /items/**: {scopes: [admin]}\n"))
    assert (found.old.rpartition("/")[2], found.new.rpartition("/")[2]) == ("1.yaml:12", "2.yaml:13")
    assert details(found) == {
        "may pass": ("read", "admin"),
        "now pass": ("", "keys with admin"),
        "no longer pass": ("keys with read", ""),
    }


def test_a_scope_that_includes_more_opens_the_routes_of_what_it_includes(configured: Configured) -> None:
    wider = SCOPES.replace("admin: Administer", "admin: {includes: [read]}")
    found = compare(configured(ITEMS), configured(ITEMS, KEYS + wider)).changes
    assert [(each.effect, each.what) for each in found] == [("opens", "GET /items/**"), ("changes", "scopes.admin")]
    assert details(found[0])["scopes that open it"] == ("read, write", "admin, read, write")


def test_a_new_scope_lists_what_it_opens_and_opens_nothing_until_granted(configured: Configured) -> None:
    new = SCOPES + "  boss: {includes: [write]}\n"
    found = change(configured(ITEMS), configured(ITEMS, KEYS + new))
    assert (found.effect, found.what, found.kind) == ("changes", "scopes.boss", "added")
    assert details(found)["opens"] == ("", "GET /items/**")


def test_a_wildcard_counts_even_if_the_catalogue_includes_less(configured: Configured) -> None:
    routes = "- GET /v: {scopes: ['videos:read']}\n"
    renamed = KEYS + SCOPES.replace("videos:", "films:")
    found = compare(configured(routes), configured(routes.replace("videos", "films"), renamed)).changes
    assert found[0].effect == "opens and closes"


TREATED = {
    "quotas": ("- GET /a: {quotas: [few]}\n", "- GET /a: {quotas: [many]}\n", {"quotas": ("few", "many")}),
    "a cost": (
        "- GET /a: {quotas: [few]}\n",
        "- GET /a: {quotas: [{quota: few, cost: 3}]}\n",
        {"quotas": ("few", "few (3 each)")},
    ),
    "a response": (
        "- GET /a: {}\n",
        "- GET /a: {respond: {a: 1}}\n",
        {"response": ("the upstream's", "the sidecar's own, 200")},
    ),
    "a timeout": ("- GET /a: {}\n", "- GET /a: {answer_timeout: 5s}\n", {"answer_timeout": ("60", "5")}),
    "a body": ("- GET /a: {}\n", "- GET /a: {body: 10B}\n", {"body": ("none", "10")}),
    "cors": ("- GET /a: {}\n", "- GET /a: {cors: {origins: ['https://x.example']}}\n", {"cors": ("off", "of https://x.example")}),
    "a cache": ("- GET /a: {}\n", "- GET /a: {cache: shared}\n", {"cache": ("by key", "shared")}),
    "a prefix": ("- GET /a/b: {}\n", "- GET /a/b: {strip_prefix: /a}\n", {"strip_prefix": ("", "/a")}),
    "an upstream": ("- GET /a: {}\n", "- GET /a: {upstream: other}\n", {"upstream": ("the default one", "other")}),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), TREATED.values(), ids=TREATED)
def test_the_treatment_of_allowed_requests_is_reported_too(
    configured: Configured, old: str, new: str, expected: dict[str, tuple[str, str]]
) -> None:
    more = KEYS + QUOTAS + "upstreams: {other: http://127.0.0.1:2}\n"
    found = change(configured(old, more), configured(new, more))
    assert (found.effect, details(found)) == ("changes", expected)


ONE = "- GET /a: {}\n"
FROM = "keys: {environments: {live: ex_}, from: [{header: Authorization, scheme: Bearer}, {query: key}]}\n"
PLAN = "plans: {pro: {few: 5}}\n"
UNLIMITED = PLAN.replace("5", "unlimited")
HEADER = "identity: {headers: {X-Key: '{key.id}'}}\n"
IMPORTED = "keys: {environments: {live: ex_}, imported: [{prefix: old_}]}\n"
SECTIONS = {
    "a quota": (QUOTAS, QUOTAS.replace("limit: 3", "limit: 5"), "changes", "quotas.few", "limit: 3 → 5"),
    "a plan": ("", PLAN, "changes", "plans.pro", "few 5"),
    "an unlimited plan": (PLAN, UNLIMITED, "changes", "plans.pro", "few: 5 → unlimited"),
    "an identity header": ("", HEADER, "changes", "identity.headers.X-Key", "{key.id}"),
    "headers to strip": ("", "identity: {strip: [X-Own]}\n", "changes", "identity.strip", "x-own"),
    "where keys stand": ("", FROM, "opens", "keys.from", "query key"),
    "an environment": ("", "keys: {environments: {live: ex_, dev: ed_}}\n", "opens", "keys.environments", "dev: ed_"),
    "the length of keys": ("", "keys: {environments: {live: ex_}, length: 50}\n", "closes", "keys.length", "43 → 50"),
    "keys made elsewhere": ("", IMPORTED, "opens", "keys.imported", "old_"),
    "how paths are compared": ("", "paths: {case_sensitive: false}\n", "opens", "paths.case_sensitive", "true → false"),
    "an upstream": ("", "upstreams: {b: http://127.0.0.1:3}\n", "changes", "upstreams.b", "http://127.0.0.1:3"),
    "a bound": ("", "limits: {body: 10B}\n", "changes", "limits", "body"),
}


@pytest.mark.parametrize(("old", "new", "effect", "what", "text"), SECTIONS.values(), ids=SECTIONS)
def test_other_sections_are_compared_by_what_they_mean(
    configured: Configured, old: str, new: str, effect: str, what: str, text: str
) -> None:
    def whole(more: str) -> Config:
        given = (part for part in ("keys: {environments: {live: ex_}}\n", QUOTAS) if part[:4] not in more)
        return configured(ONE, "".join([*given, more]))

    found = change(whole(old), whole(new))
    assert (found.effect, found.what) == (effect, what)
    shown = [" → ".join(filter(None, detail[1:])) for detail in found.details]
    assert text in "; ".join(f"{detail.name}: {value}" for detail, value in zip(found.details, shown, strict=True))
    assert found.new.rpartition(":")[2].isdigit()


def test_no_secret_of_a_configuration_is_shown(configured: Configured) -> None:
    secret = "identity: {headers: {X-Proof: 's3cret-%d'}}\n"
    found = change(configured(ONE, KEYS + secret % 1), configured(ONE, KEYS + secret % 2))
    assert "s3cret" not in repr(found)
    hashed = "keys: {environments: {live: ex_}, imported: [{prefix: old_, hash: hmac-sha256, pepper: s3cret%032d}]}\n"
    found = change(configured(ONE, hashed % 1), configured(ONE, hashed % 2))
    assert "s3cret" not in repr(found)
    assert (found.effect, found.what) == ("closes", "keys.imported")


def test_an_observed_route_is_open(configured: Configured) -> None:
    observed = "- GET /items/**: {scopes: [read], mode: observe}\n"
    found = change(configured(ITEMS), configured(observed))
    assert (found.effect, found.what) == ("opens", "GET /items/**")
    assert details(found)["may pass"] == ("read", "everyone, the mode of the route is observe")
    assert ("opens", "GET /items/**") in told(configured(ITEMS), configured(ITEMS, f"mode: observe\n{KEYS}{SCOPES}"))
    assert told(configured(observed), configured(ITEMS)) == [("closes", "GET /items/**")]
    everything = configured(ITEMS, f"mode: observe\n{KEYS}{SCOPES}")
    [mode] = [one for one in compare(everything, configured(ITEMS)).changes if one.section == "mode"]
    assert mode.details == (Detail("", "observe", "enforce"),)
    lax = SCOPES.replace("read: Read", "read: {mode: observe}")
    assert told(configured(ITEMS), configured(ITEMS, KEYS + lax)) == [
        ("opens", "GET /items/**"),
        ("changes", "scopes.read"),
    ]
    [route, _] = compare(configured(ITEMS), configured(ITEMS, KEYS + lax)).changes
    assert details(route)["scopes that open it"][1] == "none is needed"


def test_credentials_that_may_pass_open_every_route_that_lets_them(configured: Configured) -> None:
    passing = KEYS.replace("}}", "}, pass_through: [{header: X-Session}]}")
    found = told(configured(ONE), configured(ONE, passing + SCOPES))
    assert found == [("opens", "GET /a"), ("opens", "keys.pass_through")]
    closed = "- GET /a: {pass_through: false}\n"
    assert told(configured(closed), configured(closed, passing + SCOPES)) == [("opens", "keys.pass_through")]


SEGMENTS = ("a", "b", "{x}", "{x}:go", "a{x}")
POLICIES = (
    "{}", "{public: true}", "{deny: true}", "{scopes: [read]}", "{scopes: [write]}", "{all_scopes: [read, admin]}",
    "{scopes: [admin, read]}", "{environments: [live]}", "{scopes: ['videos:read']}", "{pass_through: false}",
    "{mode: observe, scopes: [read]}", "{mode: enforce, scopes: [videos:write]}", "{scopes: [admin], mode: observe}",
)  # fmt: skip


MODES = (SCOPES, SCOPES, SCOPES, SCOPES.replace("read: Read", "read: {mode: observe}"), f"mode: observe\n{SCOPES}")


def drawn(chance: random.Random) -> str:
    segments = [chance.choice(SEGMENTS).replace("x", f"p{place}") for place in range(chance.randint(1, 2))]
    path = "/" + "/".join([*segments, *chance.choice([[], [], ["**"], [""]])])
    policy = chance.choice(POLICIES)
    if "{p0}/" in path and "deny" not in policy and "public" not in policy and chance.random() < 0.3:
        policy = policy[:-1] + (", " if len(policy) > 2 else "") + "tenant: p0}"
    return f"- '{chance.choice(['GET', 'POST', '*', 'GET|PUT'])} {path}': {policy}\n"


def changed_a_bit(chance: random.Random, routes: list[str]) -> list[str]:
    place = chance.randrange(len(routes))
    return [
        *routes[:place],
        *chance.choice([[], [drawn(chance)], [routes[place], drawn(chance)]]),
        *routes[place + 1 :],
    ]


def asked(chance: random.Random) -> RecordedRequest:
    values = [chance.choice(("a", "b", "c", "ab", "c:go", "c:stop")) for _ in range(chance.randint(1, 4))]
    path = "/" + "/".join([*values, *chance.choice([[], [""]])])
    keyed = chance.random() < 0.8
    scopes = tuple(chance.sample(["read", "write", "admin", "videos:*", "*", "gone"], chance.randint(0, 2)))
    return RecordedRequest(
        method=chance.choice(["GET", "POST", "PUT", "DELETE", min(KNOWN_METHODS)]),
        path=path,
        status=200,
        key_id="key_1" if keyed else None,
        scopes=scopes if keyed else (),
        environment=chance.choice(["live", "test"]),
        tenant=chance.choice(["a", "c", None]),
        credential="key" if keyed else chance.choice([None, "pass_through"]),
    )


def passes(judge: Judge, request: RecordedRequest) -> bool:
    foreign = request.credential == "pass_through"
    outcome = judge.judge(request.method, parsed(request.path), Caller(judge.principal(request), foreign))
    return outcome.reason is None


def test_every_opened_or_closed_request_is_reported(configured: Configured) -> None:
    chance, compared = random.Random(7), 0  # noqa: S311 - the same each time
    keys = KEYS.replace("}}", "}, pass_through: [{header: X-Session}]}")
    while compared < 40:
        routes = [drawn(chance) for _ in range(chance.randint(1, 4))]
        try:
            both = routes, changed_a_bit(chance, routes)
            old, new = (configured("".join(each) or ONE, keys + chance.choice(MODES)) for each in both)
        except ConfigError:
            continue
        compared += 1
        effects = {effect for each in compare(old, new).changes for effect in each.effects}
        before, after = Judge(old), Judge(new)
        for _ in range(200):
            request = asked(chance)
            was, becomes = passes(before, request), passes(after, request)
            assert was == becomes or ("opens" if becomes else "closes") in effects, (old.routes, new.routes, request)
