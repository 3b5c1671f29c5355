"""Why a key is refused: the newest refusals, counts by reason, and exhausted quotas, in the API and on pages."""

from html import unescape
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from tests.harness.running import Sidecar, StartSidecar
from tests.wire.admin.calls import ACME, CONFIG, OPS, Admin, admin_address


def shown(refusal: dict[str, object]) -> tuple[object, ...]:
    return tuple(refusal[name] for name in ("reason", "status", "route", "method", "path", "address"))


@pytest.mark.parametrize("known", ["on", "off"])
def test_a_refusal_is_listed_on_both_ways_of_a_request(
    start_sidecar: StartSidecar, monkeypatch: pytest.MonkeyPatch, known: str
) -> None:
    monkeypatch.setenv("SIDECAR_KNOWN_REQUESTS", known)
    sidecar = start_sidecar(CONFIG)
    ops = Admin(address=admin_address(sidecar))
    key_id, secret = ops.issue(scopes=["streams:read"])
    for _ in range(3):
        assert sidecar.ask("GET", "/billing/1?token=hidden", key=secret).status == 403
    refusals = ops.call("GET", "refusals").json["refusals"]
    wanted = ("insufficient_scope", 403, "GET /billing/**", "GET", "/billing/1", "127.0.0.1")
    assert [shown(one) for one in refusals] == [wanted] * 3
    assert {one["key_id"] for one in refusals} == {key_id}
    assert secret.startswith(refusals[0]["prefix"])


def test_refusals_are_filtered_by_key_reason_and_route(ops: Admin, sidecar: Sidecar) -> None:
    key_id, secret = ops.issue(scopes=["streams:read"])
    sidecar.ask("GET", "/billing/1", key=secret)
    sidecar.ask("GET", "/nowhere", key=secret)
    sidecar.ask("GET", "/streams/1")
    ours = ops.call("GET", f"refusals?key={key_id}").json["refusals"]
    assert [one["reason"] for one in ours] == ["no_route", "insufficient_scope"]
    filters = (f"reason=no_route&key={key_id}", f"route={quote('GET /billing/**')}&key={key_id}", "limit=1")
    found = [ops.call("GET", f"refusals?{one}").json["refusals"] for one in filters]
    assert [[one["reason"] for one in each] for each in found] == [
        ["no_route"],
        ["insufficient_scope"],
        ["missing_credential"],
    ]


def test_a_key_in_a_path_or_a_query_is_not_shown(ops: Admin, sidecar: Sidecar) -> None:
    _, secret = ops.issue()
    for target in (f"/nowhere/{secret}", f"/nowhere?key={secret}"):
        sidecar.ask("GET", target)
    refusals = ops.call("GET", "refusals?limit=2")
    assert secret[len("hv_live_") :].encode() not in refusals.body
    assert [one["path"] for one in refusals.json["refusals"]] == ["/nowhere", "/nowhere/hv_live_[redacted]"]


def test_an_administrator_of_a_tenant_sees_the_refusals_of_its_keys_only(ops: Admin, sidecar: Sidecar) -> None:
    acme = Admin(address=ops.address, token=ACME)
    key_id, secret = ops.issue(scopes=["streams:read"], tenant="acme")
    _, others = ops.issue(scopes=["streams:read"], tenant="globex")
    for each in (secret, others, None):
        sidecar.ask("GET", "/billing/1", key=each)
    assert {one["key_id"] for one in acme.call("GET", "refusals").json["refusals"]} == {key_id}
    assert acme.call("GET", "overview").json["refusals_by_reason"] is None


def test_no_more_than_200_refusals_are_kept(ops: Admin, sidecar: Sidecar) -> None:
    for number in range(205):
        sidecar.ask("GET", f"/nowhere/{number}")
    refusals = ops.call("GET", "refusals").json["refusals"]
    assert [one["path"] for one in refusals] == [f"/nowhere/{number}" for number in range(204, 4, -1)]


def test_a_key_at_the_limit_of_its_plan_or_of_its_own_has_nearly_used_it_up(ops: Admin, sidecar: Sidecar) -> None:
    """The quota's own limit is 1,000, of which neither has used much."""
    planned, of_plan = ops.issue(scopes=["streams:read"], plan="free")
    own, of_own = ops.issue(scopes=["streams:read"], quotas={"general": 3})
    _, plenty = ops.issue(scopes=["streams:read"])
    for secret, requests in ((of_plan, 8), (of_own, 3), (plenty, 10)):
        for _ in range(requests):
            sidecar.ask("GET", "/streams/1", key=secret)
    near = ops.call("GET", "overview").json["nearly_used_up"]
    found = {one["key"]["id"]: (one["quota"]["remaining"], one["quota"]["limit"]) for one in near}
    assert found == {planned: (2, 10), own: (0, 3)}
    left = ops.call("GET", f"keys/{planned}/quotas").json["quotas"]
    assert [(one["name"], one["limit"], one["remaining"]) for one in left] == [("general", 10, 2)]


def test_usage_shows_the_reasons_and_the_overview_the_state(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    sidecar = start_sidecar(CONFIG, store=tmp_path / "keys.db")
    ops = Admin(address=admin_address(sidecar))
    key_id, secret = ops.issue(scopes=["streams:read"])
    sidecar.ask("GET", "/billing/1", key=secret)
    overview = ops.call("GET", "overview").json
    assert overview["refusals_by_reason"] == {"insufficient_scope": 1}
    assert (overview["health"]["ready"], overview["health"]["problems"]) == (True, [])
    assert len(overview["health"]["config_sha256"]) == 64
    routes = ops.call("GET", f"keys/{key_id}/routes").json["routes"]
    assert [route["name"] for route in routes] == ["GET /streams/**"]
    assert overview["health"]["upstream_failed"] is None
    sidecar.stop()
    again = Admin(address=admin_address(start_sidecar(CONFIG, store=tmp_path / "keys.db")))
    reasons = again.call("GET", f"keys/{key_id}/usage").json["reasons"]
    assert [(one["route"], one["reason"], one["count"]) for one in reasons] == [
        ("GET /billing/**", "insufficient_scope", 1)
    ]


def test_a_flood_of_refusals_does_not_hide_that_the_upstream_fails(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG, upstream_url="http://127.0.0.1:1")
    ops = Admin(address=admin_address(sidecar))
    key_id, secret = ops.issue(scopes=["streams:read"], tenant="globex")
    assert sidecar.ask("GET", "/streams/1", key=secret).status == 502
    for number in range(205):
        sidecar.ask("GET", f"/nowhere/{number}")
    failed = ops.call("GET", "overview").json["health"]["upstream_failed"]
    assert (failed["reason"], failed["cause"], failed["path"]) == ("upstream_unreachable", "refused", "/streams/1")
    assert failed["key_id"] == key_id
    seen = Admin(address=ops.address, token=ACME).call("GET", "overview").json["health"]["upstream_failed"]
    assert (seen["reason"], seen["cause"], seen["route"]) == ("upstream_unreachable", "refused", "GET /streams/**")
    assert [seen[name] for name in ("method", "path", "address", "key_id", "prefix")] == ["", "", "", None, None]


def test_malformed_requests_are_counted_and_listed_with_their_reason(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    ops = Admin(address=admin_address(sidecar))
    assert sidecar.ask("GET", "/streams/1", (("Bad Name", "1"),)).status == 400
    assert ops.call("GET", "overview").json["refusals_by_reason"] == {"bad_request": 1}
    [refused] = ops.call("GET", "refusals").json["refusals"]
    assert shown(refused) == ("bad_request", 400, "(none)", "", "", "127.0.0.1")


def test_refusals_are_filtered_by_time(ops: Admin, sidecar: Sidecar) -> None:
    key_id, secret = ops.issue(scopes=["streams:read"])
    sidecar.ask("GET", "/nowhere", key=secret)
    [refused] = ops.call("GET", f"refusals?key={key_id}").json["refusals"]
    at = refused["at"]
    for bounds, count in ((f"since={at}", 1), (f"until={at}", 0), ("since=2100-01-01T00:00:00Z", 0)):
        assert len(ops.call("GET", f"refusals?key={key_id}&{bounds}").json["refusals"]) == count


BY_TENANT = """\
  shared: {limit: 5, per: 24h, by: tenant}
  regional: {limit: 5, per: 24h, by: [tenant, environment]}
"""


def test_a_tenant_that_has_nearly_used_up_a_quota_is_named_once(start_sidecar: StartSidecar) -> None:
    config = CONFIG.replace("plans:\n", BY_TENANT + "plans:\n").replace(
        "quotas: [general]", "quotas: [shared, regional]"
    )
    sidecar = start_sidecar(config)
    ops = Admin(address=admin_address(sidecar))
    secrets = [ops.issue(scopes=["streams:read"], tenant="globex")[1] for _ in range(2)]
    others = ops.issue(scopes=["streams:read"], tenant="initech")[1]
    for secret in (*secrets, *secrets, others):
        assert sidecar.ask("GET", "/streams/1", key=secret).status == 200
    overview = ops.call("GET", "overview").json
    assert overview["nearly_used_up"] == []
    found = [(one["tenant"], one["environment"], one["quota"]["name"], one["quota"]["remaining"])
             for one in overview["tenants_nearly_used_up"]]  # fmt: skip
    assert sorted(found, key=str) == [("globex", "live", "regional", 1), ("globex", None, "shared", 1)]
    assert Admin(address=ops.address, token=ACME).call("GET", "overview").json["tenants_nearly_used_up"] == []


def test_an_environment_that_has_nearly_used_up_a_quota_is_named_once(start_sidecar: StartSidecar) -> None:
    quota = "  together: {limit: 5, per: 24h, by: environment}\n"
    config = CONFIG.replace("plans:\n", quota + "plans:\n").replace("quotas: [general]", "quotas: [together]")
    sidecar = start_sidecar(config)
    ops = Admin(address=admin_address(sidecar))
    secrets = [ops.issue(scopes=["streams:read"], tenant=tenant)[1] for tenant in ("globex", "initech")]
    for expected in ([], [("live", "together", 1)], [("live", "together", 0)]):
        found = [(one["key"]["environment"], one["quota"]["name"], one["quota"]["remaining"])
                 for one in ops.call("GET", "overview").json["nearly_used_up"]]  # fmt: skip
        assert found == expected
        for secret in (*secrets, *secrets):
            sidecar.ask("GET", "/streams/1", key=secret)
    page = ops.call("GET", "/", Accept="text/html").body.decode()
    assert "Environment live" in page


def test_the_use_of_all_keys_is_the_sum_of_each(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    sidecar = start_sidecar(CONFIG, store=tmp_path / "keys.db")
    ops = Admin(address=admin_address(sidecar))
    for tenant in ("acme", "globex"):
        _, secret = ops.issue(scopes=["streams:read"], tenant=tenant)
        sidecar.ask("GET", "/streams/1", key=secret)
        sidecar.ask("GET", "/billing/1", key=secret)
    sidecar.stop()
    again = admin_address(start_sidecar(CONFIG, store=tmp_path / "keys.db"))
    for token, each in ((OPS, 2), (ACME, 1)):
        usage = Admin(address=again, token=token).call("GET", "usage").json
        assert {(row["route"], row["status_class"]): row["count"] for row in usage["rows"]} == {
            ("GET /streams/**", 2): each,
            ("GET /billing/**", 4): each,
        }
        assert [(row["reason"], row["count"]) for row in usage["reasons"]] == [("insufficient_scope", each)]


def encoded(text: str, times: int = 1) -> str:
    """Each character as `%XX`, and the percent signs of that again."""
    return "".join(f"%{'25' * (times - 1)}{ord(char):02x}" for char in text)


def spellings(secret: str) -> dict[str, str]:
    """Targets in which a client may put a key."""
    prefix, body = secret[:8], secret[8:]
    return {
        "path": f"/nowhere/{secret}/x",
        "query": f"/nowhere?api_key={secret}",
        "parameter of a segment": f"/nowhere;key={secret}",
        "absolute form": f"http://{secret}@127.0.0.1/nowhere/{secret}",
        "all encoded": f"/nowhere/{encoded(secret)}",
        "prefix encoded": f"/nowhere/{encoded(prefix)}{body}",
        "one letter encoded": f"/nowhere/h%76_live_{body}",
        "separator encoded": f"/nowhere/hv%5Flive%5f{body}",
        "encoded twice": f"/nowhere/{encoded(secret, 2)}",
        "encoded three times": f"/nowhere/{encoded(prefix, 3)}{body}",
        "nested digits": f"/nowhere/%2%35{encoded(secret, 2)[3:]}",
        "at the cut": f"/{'x' * 180}{secret}",
        "encoded at the cut": f"/{'x' * 170}{encoded(secret)}",
        "refused before it is a path": f"/../{secret}",
    }


@pytest.mark.parametrize("spelling", sorted(spellings("hv_live_0")))
def test_no_spelling_of_a_key_in_a_target_is_shown(ops: Admin, sidecar: Sidecar, spelling: str) -> None:
    """Even immediately: refusals are redacted when they are read."""
    _, secret = ops.issue()
    target = spellings(secret)[spelling]
    sidecar.ask("GET", target)
    sidecar.ask("GET", target, key=secret)
    for path in ("refusals?limit=2", "overview", "/"):
        seen = unescape(ops.call("GET", path, Accept="text/html").body.decode())
        for _ in range(4):
            assert secret[8:24] not in seen, path
            seen = unquote(seen)


def test_a_key_in_the_method_or_in_a_filter_is_not_shown(ops: Admin, sidecar: Sidecar) -> None:
    key_id, secret = ops.issue()
    sidecar.ask(secret, "/nowhere")
    places = (
        "refusals?limit=1",
        "/",
        *(f"{page}?{name}={secret}" for page in ("/", f"/keys/{key_id}") for name in ("reason", "route", "at", "span")),
    )
    for path in places:
        assert secret[8:24].encode() not in ops.call("GET", path, Accept="text/html").body, path


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "\"onmouseover='alert(1)'", "{{7*7}}", "%3Cb%3E<b>"])
def test_what_a_client_sends_cannot_become_html(ops: Admin, sidecar: Sidecar, hostile: str) -> None:
    sidecar.ask("GET", f"/nowhere/{hostile}")
    sidecar.ask("GET", "/nowhere", (("X-Forwarded-For", hostile), ("User-Agent", hostile)))
    for page in ("/", f"/?reason={quote(hostile)}&route={quote(hostile)}&at={quote(hostile)}"):
        shown = ops.call("GET", page, Accept="text/html").body.decode()
        assert not any(tag in shown for tag in ("<script>", "<b>x", "<b></", '"onmouseover', "/nowhere/49"))
        assert hostile not in shown or hostile == "{{7*7}}"
