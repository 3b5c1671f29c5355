"""A refusal by its request id, in the API and on its page: the past decision, and today's."""

from html import unescape
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.harness.running import Sidecar, StartSidecar
from tests.harness.waiting import until
from tests.wire.admin.calls import ACME, CONFIG, Admin, Response, admin_address

QUOTA = "  few: {limit: 1, per: 24h}\n"


def ask(sidecar: Sidecar, path: str, request_id: str, secret: str | None) -> None:
    sidecar.ask("GET", path, [("X-Request-Id", request_id)], key=secret)


def page_of(admin: Admin, request_id: str) -> Response:
    return admin.call("GET", f"/refusals/{quote(request_id, safe='')}", Accept="text/html")


def test_a_refusal_is_shown_as_it_was_and_as_it_would_be_now(ops: Admin, sidecar: Sidecar) -> None:
    key_id, secret = ops.issue(scopes=["streams:read"], tenant="globex", plan="pro")
    ask(sidecar, "/billing/7?token=unseen-1", "told", secret)
    [listed] = ops.call("GET", f"refusals?key={key_id}").json["refusals"]
    assert listed["request_id"] == "told"
    told = ops.call("GET", "refusals/told")
    [one] = told.json["decisions"]
    assert (told.json["total"], one["refusal"]) == (1, listed)
    then = {line["label"]: line["text"] for line in one["then"]}
    assert then["missing"] == "billing" and then["answered"] == "403: insufficient_scope"
    assert then["config"] == f"{listed['config']}, the same as today"
    assert (one["otherwise"], one["verdict"]) == (False, "Today's configuration decides the same.")
    page = unescape(page_of(ops, "told").body.decode())
    for line in (*one["then"], *one["now"]):
        assert line["text"] in page or line["label"] == "time"
    assert f'href="/keys/{key_id}"' in page
    assert 'href="/refusals/told"' in ops.call("GET", "/", Accept="text/html").body.decode()
    assert 'href="/refusals/told"' in ops.call("GET", f"/keys/{key_id}", Accept="text/html").body.decode()
    assert b"unseen-1" not in told.body + page.encode() and secret not in page + told.body.decode()


def test_under_another_configuration_it_says_what_would_become_of_the_request(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    config = (
        CONFIG.replace("plans:\n", QUOTA + "plans:\n") + "  - GET /few: {quotas: [few]}\nreload: {interval: 100ms}\n"
    )
    sidecar = start_sidecar(config, store=tmp_path / "keys.db")
    ops = Admin(address=admin_address(sidecar))
    _, secret = ops.issue(scopes=["streams:read"])
    ask(sidecar, "/billing/7", "scope", secret)
    for request_id in ("passed", "quota"):
        ask(sidecar, "/few", request_id, secret)
    before = ops.call("GET", "overview").json["health"]["config_sha256"]
    file = Path(str(sidecar.keys.config))
    file.write_text(file.read_text().replace("[billing]", "[streams:read]").replace("limit: 1,", "limit: 7,"))
    until(lambda: ops.call("GET", "overview").json["health"]["config_sha256"] != before)
    [scope] = ops.call("GET", "refusals/scope").json["decisions"]
    assert scope["otherwise"] is True and scope["verdict"].endswith("otherwise: it lets it through.")
    assert {"label": "missing", "text": "billing"} in scope["then"]
    [quota] = ops.call("GET", "refusals/quota").json["decisions"]
    assert "Today few has a limit of 7 for this key, in place of 1" in quota["verdict"]
    assert any(line["text"].startswith("few of 1; free again after ") for line in quota["then"])
    assert {"label": "quotas", "text": "few: 0 of 1 left"} in quota["then"]


def test_every_refusal_with_the_id_is_listed_up_to_twenty(ops: Admin, sidecar: Sidecar) -> None:
    for number in range(22):
        ask(sidecar, f"/nowhere/{number}", "again", None)
    told = ops.call("GET", "refusals/again").json
    assert told["total"] == 22
    assert [one["refusal"]["path"] for one in told["decisions"]] == [
        f"/nowhere/{number}" for number in range(21, 1, -1)
    ]
    assert "22 refusals had this id" in page_of(ops, "again").body.decode()


@pytest.mark.parametrize("request_id", ["a/b:c=d+e~f", "...", "-._~+/=:", "x" * 128])
def test_any_id_that_a_client_may_choose_has_a_page(ops: Admin, sidecar: Sidecar, request_id: str) -> None:
    ask(sidecar, "/nowhere", request_id, None)
    link = f"/refusals/{quote(request_id, safe='')}"
    assert f'href="{link}"' in ops.call("GET", "/", Accept="text/html").body.decode()
    assert page_of(ops, request_id).status == 200
    [one] = ops.call("GET", link.lstrip("/")).json["decisions"]
    assert one["refusal"]["request_id"] == request_id


def test_a_tenants_administrator_learns_only_about_its_own_keys(ops: Admin, sidecar: Sidecar) -> None:
    acme = Admin(address=ops.address, token=ACME)
    for tenant in ("acme", "globex"):
        _, secret = ops.issue(scopes=["streams:read"], tenant=tenant)
        ask(sidecar, f"/billing/{tenant}", "both", secret)
        ask(sidecar, "/billing/1", f"of-{tenant}", secret)
    ask(sidecar, "/billing/1", "nobody", None)
    assert [one["refusal"]["path"] for one in acme.call("GET", "refusals/both").json["decisions"]] == ["/billing/acme"]
    assert acme.call("GET", "refusals/of-acme").status == 200
    for request_id in ("of-globex", "nobody", "none"):
        assert acme.call("GET", f"refusals/{request_id}").status == 404
        assert acme.call("GET", f"refusals/{request_id}").json["code"] == "unknown_request"


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "{{7*7}}", "%1b[2J", "\\udcff", "a;b=../../x"])
def test_what_a_client_sends_cannot_become_html(ops: Admin, sidecar: Sidecar, hostile: str) -> None:
    ask(sidecar, f"/nowhere/{hostile}", "hostile", None)
    shown = page_of(ops, "hostile")
    assert shown.status == 200
    assert b"<script>alert" not in shown.body and b"/nowhere/49" not in shown.body
    assert ops.call("GET", "refusals/hostile").status == 200


def test_without_a_session_there_is_nothing_to_see(ops: Admin, sidecar: Sidecar) -> None:
    ask(sidecar, "/nowhere", "closed", None)
    nobody = Admin(address=ops.address, token=None)
    assert nobody.call("GET", "refusals/closed").status == 401
    assert b"/nowhere" not in page_of(nobody, "closed").body


def test_refusals_of_every_worker_are_found(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG + "workers: 2\n")
    ops = Admin(address=admin_address(sidecar))
    _, secret = ops.issue(scopes=["streams:read"])
    for number in range(12):
        ask(sidecar, f"/billing/{number}", "spread", secret)
    until(lambda: ops.call("GET", "refusals/spread").status == 200
          and ops.call("GET", "refusals/spread").json["total"] == 12)  # fmt: skip
    decisions = ops.call("GET", "refusals/spread").json["decisions"]
    assert {next(line["text"] for line in one["then"] if line["label"] == "missing") for one in decisions} == {
        "billing"
    }
