"""Everything on a page is also available from the API.

SOURCES names the API source of each field of the view models, which are all that templates can show: operations and the
members of their responses. A new field without a line fails a test, as does a line whose operation or member is not in
the OpenAPI document. The pages are then compared with the API.
"""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from html import unescape
from inspect import isclass
from typing import Any, Final

import pytest

from sidecar.admin.web import explain, policy_views, view_models
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.waiting import until
from tests.wire.admin.calls import CONFIG, Admin, Person, admin_address

TYPED: Final = "what the person has typed or chosen"
WORDS: Final = "words, colours and links for the facts beside it"
CONSTANT: Final = "the same everywhere, as the API's descriptions say"
PARTS: Final = "has fields of its own, listed under its class"

_BY_CLASS: Final = "showUsage/rows/status_class showUsage/rows/count"
_ONE_KEY: Final = {
    "id": "showKey/id", "name": "showKey/name", "prefix": "showKey/prefix", "tenant": "showKey/tenant",
}  # fmt: skip
SOURCES: Final[dict[str, dict[str, str]]] = {
    "Frame": {
        "here": WORDS, "who": "whoAmI/name", "rights": "whoAmI/rights whoAmI/tenant", "may_write": "whoAmI/rights",
        "note": "showOverview/health/remarks", "proof": WORDS,
        "pending": "showConfiguration/pending/since showConfiguration/pending/total",
        "observing": "showOverview/health/observing",
    },
    "Moment": {"relative": WORDS, "exact": WORDS, "machine": WORDS},
    "Option": {"value": WORDS, "label": WORDS, "chosen": TYPED},
    "StatusBadge": {"kind": "showKey/status", "label": WORDS},
    "KeyRow": {
        **{name: f"listKeys/keys/{name}" for name in ("id", "name", "prefix", "tenant", "environment", "status")},
        "scopes": "listKeys/keys/scopes", "plan": "listKeys/keys/plan",
        "ends": "listKeys/keys/expires_at listKeys/keys/retires_at", "last_used": "listKeys/keys/last_used_at",
        "requests": "showUsage/rows/count", "spark": "showUsage/rows/count showUsage/rows/at",
    },
    "KeyList": {
        "rows": PARTS, "search": TYPED, "tenant": TYPED, "environments": "whoAmI/environments", "standings": CONSTANT,
        "one_tenant": "whoAmI/tenant", "filtered": TYPED, "sorts": CONSTANT, "total": "listKeys/total", "first": WORDS,
        "next": "listKeys/next", "unused": CONSTANT, "export": WORDS, "all_to_disable": WORDS, "all_to_revoke": WORDS,
        "done": WORDS, "done_kind": WORDS,
    },
    "ChosenKey": {
        **{name: f"changeKeys/keys/{name}" for name in ("id", "name", "prefix", "tenant", "status")},
        "last_used": "changeKeys/keys/last_used_at",
    },
    "ManyKeys": {
        "action": TYPED, "title": "changeKeys/keys", "destructive": WORDS, "effects": WORDS, "keys": PARTS,
        "tenants": "changeKeys/keys/tenant", "unused_since": TYPED,
    },
    "ScopeChoice": {
        "name": "listScopes/scopes/name", "description": "listScopes/scopes/description",
        "includes": "listScopes/scopes/includes", "opens": "listRoutes/routes/any_scopes listRoutes/routes/all_scopes",
        "chosen": TYPED,
    },
    "QuotaField": {"name": "listPlans/quotas/name", "limit": "listPlans/quotas/limit", "value": TYPED},
    "KeyForm": {
        "name": TYPED, "tenant": TYPED, "fixed_tenant": "whoAmI/tenant", "environments": "whoAmI/environments",
        "scopes": "listScopes/scopes/grantable whoAmI/default_scopes", "other_scopes": "showKey/scopes",
        "plans": "listPlans/plans/limits whoAmI/plans whoAmI/default_plan", "quotas": PARTS, "metadata": TYPED,
        "expiry": CONSTANT, "expires_on": TYPED, "problems": "whoAmI/required", "idempotency_key": WORDS, "etag": WORDS,
    },
    "NewSecret": {
        "id": "issueKey/key/id", "name": "issueKey/key/name", "text": "issueKey/secret", "command": WORDS,
        "opens": "showKeyRoutes/routes/name", "replaces": "issueKey/key/replaces",
        "retires": "rotateKey/old/retires_at",
    },
    "Fact": {"label": WORDS, "value": PARTS, "moment": PARTS, "link": WORDS, "chips": PARTS, "mono": WORDS},
    "RouteRow": {
        "name": "showKeyReach/allowed/name", "link": WORDS, "where": "showKeyReach/allowed/where",
        "needs": "showKeyReach/allowed/any_scopes showKeyReach/allowed/all_scopes showKeyReach/allowed/tenant_param "
                 "showKeyReach/allowed/environment_param showKeyReach/allowed/public showKeyReach/allowed/pass_through",
        "quotas": "showKeyReach/allowed/quotas",
    },
    "ClosedRow": {
        "name": "showKeyReach/closed/route/name", "link": WORDS,
        "why": "showKeyReach/closed/bar showKeyReach/closed/missing",
        "opened_by": "showKeyReach/closed/opened_by", "others": "showKeyReach/closed/opened_by",
    },
    "KeyReach": {
        "allowed": PARTS, "near": PARTS, "barred": PARTS, "closed": "showKeyReach/closed",
        "more": "showKeyReach/closed",
    },
    "OutcomeCell": {
        "allowed": "showPolicy/routes/last_day/allowed showPolicy/routes/last_day/server_errors "
                   "showPolicy/routes/since_start/allowed",
        "refused": "showPolicy/routes/last_day/refused showPolicy/routes/since_start/refused",
        "detail": "showPolicy/routes/last_day/denied showPolicy/routes/since_start/denied",
        "faults": "showPolicy/routes/last_day/faults showPolicy/routes/since_start/faults",
        "observed": "showPolicy/routes/last_day/would_deny showPolicy/routes/since_start/would_deny",
    },
    "PolicyRow": {
        "name": "showPolicy/routes/route/name", "link": WORDS, "needs": "showPolicy/routes/needs",
        "marks": "showPolicy/routes/observed showPolicy/routes/route/public showPolicy/routes/route/deny "
                 "showPolicy/routes/forwarding/responds showPolicy/routes/forwarding/upstream",
        "quotas": "showPolicy/routes/route/quotas", "where": "showPolicy/routes/route/where", "day": PARTS,
        "counted": PARTS,
    },
    "ProblemRow": {
        "where": "showConfiguration/pending/problems/where", "message": "showConfiguration/pending/problems/message",
    },
    "PendingConfig": {
        "since": "showConfiguration/pending/since", "at": "showConfiguration/pending/at", "problems": PARTS,
        "more": "showConfiguration/pending/total",
    },
    "PolicyPage": {
        "intro": "listRoutes/routes showConfiguration/path showConfiguration/sha256 showConfiguration/since",
        "pending": PARTS, "restart": "showConfiguration/needs_restart", "ask": PARTS, "rows": PARTS, "search": TYPED,
        "scopes": "listScopes/scopes/name", "used": CONSTANT, "filtered": TYPED, "total": "showPolicy/routes",
        "counted_since": "showPolicy/counted_since", "first": WORDS, "next": WORDS,
    },
    "ReachKey": {
        **{name: f"showReach/keys/{name}" for name in ("id", "name", "prefix", "tenant", "environment", "scopes")},
        "last_used": "showReach/keys/last_used_at",
    },
    "RouteReach": {
        "summary": "showReach/audience showReach/count showReach/looked_at", "note": "showReach/whole", "keys": PARTS,
        "tenants": "showReach/tenants/tenant showReach/tenants/count",
        "scopes": "showReach/scopes/scope showReach/scopes/count", "tenant": TYPED, "every": WORDS, "first": WORDS,
        "next": "showReach/next",
    },
    "RoutePage": {
        "name": "showPolicy/routes/route/name", "link": WORDS, "needs": "showPolicy/routes/needs",
        "marks": "showPolicy/routes/observed showPolicy/routes/route/public showPolicy/routes/forwarding/responds",
        "facts": PARTS,
        "chart": "showTotalUsage/rows/at showTotalUsage/rows/route showTotalUsage/rows/count", "day": PARTS,
        "by_reason": "showPolicy/routes/last_day/denied", "counted": PARTS,
        "counted_by_reason": "showPolicy/routes/since_start/denied",
        "observed": "showPolicy/routes/last_day/would_deny",
        "counted_observed": "showPolicy/routes/since_start/would_deny", "counted_since": "showPolicy/counted_since",
        "reach": PARTS, "ask": PARTS, "latest": PARTS,
    },
    "QuotaRow": {
        "name": "showQuotas/quotas/name", "limit": "showQuotas/quotas/limit listPlans/quotas/per",
        "left": "showQuotas/quotas/remaining", "percent": "showQuotas/quotas/remaining", "kind": WORDS,
        "resets": "showQuotas/quotas/resets_at", "note": "showQuotas/quotas/note", "link": WORDS,
        "subject": "showOverview/nearly_used_up/key/name showOverview/tenants_nearly_used_up/tenant",
    },
    "CountRow": {
        "name": "showUsage/reasons/reason", "count": "showUsage/reasons/count", "percent": "showUsage/reasons/count",
        "link": WORDS,
    },
    "RefusalRow": {
        "moment": "listRefusals/refusals/at", "reason": "listRefusals/refusals/reason listRefusals/refusals/cause",
        "status": "listRefusals/refusals/status", "route": "listRefusals/refusals/route",
        "observed": "listRefusals/refusals/observed",
        "request": "listRefusals/refusals/method listRefusals/refusals/path",
        "address": "listRefusals/refusals/address",
        "key_id": "listRefusals/refusals/key_id", "prefix": "listRefusals/refusals/prefix", "explain": WORDS,
        "why": "listRefusals/refusals/request_id",
    },
    "LatestRefusals": {
        "action": WORDS, "rows": PARTS, "total": "listRefusals/refusals", "reasons": "listRefusals/refusals/reason",
        "routes": "listRefusals/refusals/route", "slot": TYPED, "kept": TYPED, "filtered": TYPED, "with_key": WORDS,
    },
    "UsageByRoute": {
        "route": "showUsage/rows/route",
        **dict.fromkeys(("total", "good", "client_errors", "server_errors"), _BY_CLASS),
    },
    "Change": {"label": WORDS, "before": "listAudit/rows/before", "after": "listAudit/rows/after"},
    "AuditEntry": {
        "action": "listAudit/rows/action", "actor": "listAudit/rows/actor", "source": "listAudit/rows/source",
        "moment": "listAudit/rows/at", "key_id": "listAudit/rows/key_id", "key_name": "listAudit/rows/after",
        "changes": PARTS,
    },
    "KeyPage": {
        "id": "showKey/id", "name": "showKey/name", "status": PARTS, "status_note": WORDS,
        "facts": "showKey/id showKey/prefix showKey/tenant showKey/environment showKey/scopes showKey/plan "
                 "showKey/quotas showKey/metadata showKey/last_used_at showKey/last_used_address "
                 "showKey/last_used_agent showKey/created_at showKey/created_by showKey/expires_at "
                 "showKey/retires_at showKey/replaces",
        "quotas": PARTS, "chart": "showUsage/rows/at showUsage/rows/count", "spans": CONSTANT,
        "slot": TYPED, "whole": WORDS, "by_route": PARTS, "by_reason": PARTS, "latest": PARTS, "audit": PARTS,
        "observed": "showUsage/would_deny/reason showUsage/would_deny/count",
        "actions": "showKey/status", "done": WORDS,
    },
    "Confirm": {
        **_ONE_KEY, "verb": TYPED, "title": WORDS, "button": WORDS, "destructive": WORDS,
        "effects": "showKey/expires_at showKey/last_used_at", "last_used": "showKey/last_used_at",
        "requests": "showUsage/rows/count", "overlaps": CONSTANT, "etag": WORDS, "idempotency_key": WORDS,
        "problem": WORDS,
    },
    "AuditPage": {
        "entries": PARTS, "key": TYPED, "name": TYPED, "actor": TYPED, "tenant": TYPED, "one_tenant": "whoAmI/tenant",
        "since": TYPED, "until": TYPED, "actions": CONSTANT, "filtered": TYPED, "first": WORDS,
        "next": "listAudit/next",
    },
    "Tile": {"name": WORDS, "value": PARTS, "note": PARTS, "link": WORDS},
    "State": {"name": WORDS, "good": PARTS, "value": PARTS, "link": WORDS},
    "Event": {
        "title": "showOverview/unusual/kind", "detail": "showOverview/unusual/detail",
        "moment": "showOverview/unusual/at", "key_id": "showOverview/unusual/key_id", "key_name": "showKey/name",
    },
    "DueRow": {
        "key_id": "showOverview/due/key/id", "key_name": "showOverview/due/key/name", "reason": "showOverview/due/why",
        "moment": "showOverview/due/at", "last_used": "showOverview/due/key/last_used_at",
    },
    "Overview": {
        "intro": "listRoutes/routes whoAmI/tenant", "first_steps": "listKeys/total",
        "tiles": "showOverview/requests_by_class showOverview/keys showOverview/due",
        "chart": "showTotalUsage/rows/at showTotalUsage/rows/count", "unusual": PARTS, "due": PARTS,
        "due_within": CONSTANT, "refusals": "showOverview/refusals_by_reason",
        "refusals_since": "showOverview/refusals_since", "latest": PARTS,
        "states": "showOverview/health/ready showOverview/health/problems showOverview/health/remarks "
                  "showOverview/health/config_sha256 showOverview/health/config_since "
                  "showOverview/health/upstream_failed/at showOverview/health/upstream_failed/cause",
        "quotas": "showOverview/nearly_used_up/quota/remaining showOverview/tenants_nearly_used_up/quota/remaining",
        "near_percent": CONSTANT,
    },
    "ExplainResult": {
        "allowed": "explain/decision", "title": "explain/reason explain/would_deny",
        "summary": "explain/status explain/route explain/where", "facts": "explain/lines/label explain/lines/text",
    },
    "PastDecisionView": {
        "title": "showRefusals/decisions/refusal/reason", "observed": "showRefusals/decisions/refusal/observed",
        "moment": "showRefusals/decisions/refusal/at",
        "then": "showRefusals/decisions/then/label showRefusals/decisions/then/text",
        "verdict": "showRefusals/decisions/verdict", "otherwise": "showRefusals/decisions/otherwise",
        "now": "showRefusals/decisions/now/label showRefusals/decisions/now/text", "explain": WORDS,
    },
    "RefusalsView": {
        "request_id": "showRefusals/decisions/refusal/request_id", "total": "showRefusals/total", "decisions": PARTS,
    },
    "Explanation": {
        "methods": "listRoutes/routes/methods", "target": TYPED, "example": "listRoutes/routes/pattern", "key": TYPED,
        "problem": WORDS, "result": PARTS,
    },
}  # fmt: skip
LABELS: Final = {
    "Id": "showKey/id", "Prefix": "showKey/prefix", "Tenant": "showKey/tenant", "Environment": "showKey/environment",
    "Scopes": "showKey/scopes", "Plan": "showKey/plan", "Own limits": "showKey/quotas", "Metadata": "showKey/metadata",
    "Last used": "showKey/last_used_at", "Last used from": "showKey/last_used_address",
    "Last user agent": "showKey/last_used_agent", "Issued": "showKey/created_at", "Issued by": "showKey/created_by",
    "Expires": "showKey/expires_at", "Retires": "showKey/retires_at", "Retired": "showKey/retires_at",
    "Replaces": "showKey/replaces",
    "Use of scopes": "showScopeUse/suggestion showScopeUse/why showScopeUse/scopes showScopeUse/used",
    "Needed": "showScopeUse/needed", "Not used": "showScopeUse/unused", "To narrow it": "showScopeUse/needed",
    "As a command": "showScopeUse/command",
    "Requests": "showOverview/requests_by_class", "4xx responses": "showOverview/requests_by_class",
    "5xx responses": "showOverview/requests_by_class", "Active keys": "showOverview/keys",
    "Keys due": "showOverview/due",
    "Readiness": "showOverview/health/ready showOverview/health/problems",
    "Upstream": "showOverview/health/upstream_failed/at showOverview/health/upstream_failed/cause",
    "Store": "showOverview/health/problems showOverview/health/remarks",
    "Configuration": "showOverview/health/config_sha256 showOverview/health/config_since showOverview/health/remarks",
    "Methods": "showPolicy/routes/route/methods", "Path": "showPolicy/routes/route/pattern",
    "Requires": "showPolicy/routes/needs", "Any of": "showPolicy/routes/route/any_scopes",
    "All of": "showPolicy/routes/route/all_scopes", "Environments": "showPolicy/routes/route/environments",
    "Quotas": "showPolicy/routes/route/quotas listPlans/quotas/limit listPlans/quotas/per listPlans/quotas/by",
    "Responds": "showPolicy/routes/forwarding/responds", "Goes to": "showPolicy/routes/forwarding/upstream",
    "Prefix taken off": "showPolicy/routes/forwarding/strip_prefix",
    "Waits": "showPolicy/routes/forwarding/answer_timeout_seconds",
    "Body": "showPolicy/routes/forwarding/body_bytes showPolicy/routes/forwarding/unlimited_body",
    "Caches": "showPolicy/routes/forwarding/shared_cache", "Scripts of": "showPolicy/routes/forwarding/origins",
    "Other credentials": "showPolicy/routes/route/pass_through", "Defined in": "showPolicy/routes/route/where",
}  # fmt: skip
"""Sources of labelled values: facts of a key, tiles and states of the overview."""
_LABEL: Final = re.compile(r'<dt>(.*?)</dt>|<div class="name">(.*?)</div>|<li class="(?:good|bad)"><b>(.*?)</b>')
VIEWS: Final = (view_models, policy_views, explain)
_NO_SOURCE = (TYPED, WORDS, CONSTANT, PARTS)


def shown_fields() -> dict[str, set[str]]:
    models = (each for module in VIEWS for each in vars(module).values() if isclass(each) and is_dataclass(each))
    return {model.__name__: {field.name for field in fields(model)}
            for model in models if model.__module__ in {module.__name__ for module in VIEWS}}  # fmt: skip


def test_each_fact_of_a_page_has_a_source_in_the_api() -> None:
    assert {name: set(sources) for name, sources in SOURCES.items()} == shown_fields()


def test_each_source_is_in_the_description_of_the_api(ops: Admin) -> None:
    document = ops.call("GET", "/api/openapi.json").json
    wanted = {source for each in (*SOURCES.values(), LABELS) for text in each.values() if text not in _NO_SOURCE
              for source in text.split()}  # fmt: skip
    assert len(wanted) > 80
    assert sorted(source for source in wanted if not is_described(document, source)) == []


def is_described(document: dict[str, Any], source: str) -> bool:
    """Whether `operation/member/member` names a member of the operation's successful response."""
    name, *members = source.split("/")
    [operation] = [one for path in document["paths"].values() for one in path.values() if one["operationId"] == name]
    [status] = [status for status in operation["responses"] if status in ("200", "201")][:1]
    schemas = [operation["responses"][status]["content"]["application/json"]["schema"]]
    for member in members:
        described = [each.get("properties", {}) for each in plain(document, schemas)]
        schemas = [properties[member] for properties in described if member in properties]
    return bool(schemas)


def plain(document: dict[str, Any], schemas: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The schemas without references, choices and lists around them."""
    for schema in schemas:
        inner = [*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else [])]
        if "$ref" in schema:
            inner.append(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
        yield schema
        yield from plain(document, inner)


# The pages, compared with the API.


@pytest.fixture(scope="module")
def lively(start_shared_sidecar: StartSidecar) -> tuple[Admin, str]:
    """A sidecar and a key with allowed, refused and malformed requests behind it, all of them written."""
    sidecar = start_shared_sidecar(CONFIG)
    ops = Admin(address=admin_address(sidecar))
    key_id, secret = ops.issue(name="BI export", tenant="globex", scopes=["streams:read"], plan="free",
                               metadata={"team": "data"}, expires_at="2099-01-01T00:00:00Z")  # fmt: skip
    _requests(sidecar, secret)
    until(lambda: len(ops.call("GET", f"keys/{key_id}/usage").json["reasons"]) == 2)
    ops.call("PATCH", f"keys/{key_id}", {"name": "BI export 2"})
    return ops, key_id


def _requests(sidecar: Sidecar, secret: str) -> None:
    for target in ("/streams/1",) * 9 + ("/billing/7", "/nowhere"):
        sidecar.ask("GET", target, key=secret)
    sidecar.ask("GET", "/streams/1")
    sidecar.ask("GET", "/streams/1", (("Bad Name", "1"),))


def html_of(ops: Admin, path: str) -> str:
    response = ops.call("GET", path, Accept="text/html")
    assert response.status == 200
    return response.body.decode()


def page_of(ops: Admin, path: str) -> str:
    """The words of a page, separated by single spaces."""
    return words_of(html_of(ops, path))


def words_of(html: str) -> str:
    return " ".join(unescape(re.sub(r"<title>.*?</title>|<[^>]+>", " ", html)).split())


def missing(page: str, *facts: object) -> list[object]:
    return [fact for fact in facts if str(fact) not in page]


def test_the_overview_matches_the_api(lively: tuple[Admin, str]) -> None:
    ops, _ = lively
    page, state, who = page_of(ops, "/"), ops.call("GET", "overview").json, ops.call("GET", "whoami").json
    total = sum(state["requests_by_class"].values())
    assert missing(page, f"Requests {total}", f"4xx responses {state['requests_by_class']['4xx']}") == []
    assert missing(page, f"Active keys {state['keys']['active']}", state["health"]["config_sha256"][:12]) == []
    assert missing(page, *(f"{reason} {count}" for reason, count in state["refusals_by_reason"].items())) == []
    assert missing(page, who["name"], f"{len(ops.call('GET', 'routes').json['routes'])} routes in force") == []
    [near] = state["nearly_used_up"]
    assert missing(page, near["key"]["name"], f"{near['quota']['name']} {near['quota']['limit']} per",
                   f"{near['quota']['remaining']} left") == []  # fmt: skip
    counts = ops.call("GET", "usage").json["rows"]
    assert sum(row["count"] for row in counts) == total
    assert missing(page, *map(in_words, ops.call("GET", "refusals").json["refusals"])) == []


def in_words(refusal: dict[str, Any]) -> str:
    """A row of the latest refusals."""
    asked = f"{refusal['method']} {refusal['path']}" if refusal["method"] else "Malformed: no request could be read"
    key = f"{refusal['prefix']}…" if refusal["key_id"] else "Unknown"
    return f"{asked} {refusal['route']} {refusal['reason']} {refusal['status']} {key} {refusal['address']}"


def test_the_page_of_a_key_matches_the_api(lively: tuple[Admin, str]) -> None:
    ops, key_id = lively
    page, key = page_of(ops, f"/keys/{key_id}"), ops.call("GET", f"keys/{key_id}").json
    told = [key[name] for name in ("id", "name", "prefix", "tenant", "environment", "plan", "created_by")]
    assert missing(page, *told, *key["scopes"], *(f"{name}={value}" for name, value in key["metadata"].items())) == []
    assert missing(page, *(exact(key[name]) for name in ("created_at", "expires_at", "last_used_at"))) == []
    usage = ops.call("GET", f"keys/{key_id}/usage").json
    reasons = {row["reason"]: row["count"] for row in usage["reasons"]}
    assert missing(page, *(f"{reason} {count}" for reason, count in reasons.items())) == []
    assert missing(page, *(f"{row['route']}" for row in usage["rows"])) == []
    [quota] = ops.call("GET", f"keys/{key_id}/quotas").json["quotas"]
    assert missing(page, f"{quota['name']} {quota['limit']} per", f"{quota['remaining']} left") == []
    [route] = ops.call("GET", f"keys/{key_id}/routes").json["routes"]
    assert missing(page, route["name"], route["where"], *route["any_scopes"], *route["quotas"]) == []
    changed = ops.call("GET", f"audit?key={key_id}").json["rows"][0]
    assert missing(page, f"Name: {changed['before']['name']} → {changed['after']['name']}", changed["source"]) == []


def test_the_pages_of_the_policy_match_the_api(lively: tuple[Admin, str]) -> None:
    ops, _ = lively
    page, policy = page_of(ops, "/policy"), ops.call("GET", "policy").json
    state = ops.call("GET", "configuration").json
    assert missing(page, state["path"], state["sha256"][:12]) == []
    for one in policy["routes"]:
        route, day = one["route"], one["last_day"]
        assert missing(page, route["name"], one["needs"], *route["quotas"]) == []
        assert missing(page, *(f"{day[name]} {name}" for name in ("allowed", "refused") if day[name])) == []
    [streams, *_] = policy["routes"]
    page = page_of(ops, "/policy/GET%20%2Fstreams%2F**")
    assert missing(page, streams["route"]["pattern"], streams["route"]["where"], *streams["route"]["methods"]) == []
    reach = ops.call("GET", "policy/reach?route=GET%20/streams/**").json
    names = [key["name"] for key in reach["keys"]]
    assert missing(page, f"{reach['count']} of {reach['looked_at']} usable key", *names) == []
    assert missing(page, *(f"{reason} {count}" for reason, count in streams["since_start"]["denied"].items())) == []


def exact(time: str) -> str:
    """RFC 3339 as pages write it."""
    return f"{time[:10]} {time[11:19]} UTC"


def test_lists_of_keys_and_changes_match_the_api(lively: tuple[Admin, str]) -> None:
    ops, _ = lively
    page, keys = page_of(ops, "/keys"), ops.call("GET", "keys").json
    assert missing(page, f"{keys['total']} key") == []
    for key in keys["keys"]:
        assert missing(page, key["name"], f"{key['prefix']}… · {key['environment']}", *key["scopes"]) == []
    audit = page_of(ops, "/audit")
    for row in ops.call("GET", "audit").json["rows"]:
        assert missing(audit, f"{row['actor']} from {row['source']} · {exact(row['at'])}", row["after"]["name"]) == []
    assert missing(page_of(ops, "/keys?environment=live"), *ops.call("GET", "whoami").json["environments"]) == []


def test_each_labelled_fact_has_a_source_in_the_api(lively: tuple[Admin, str]) -> None:
    ops, key_id = lively
    pages = ("/", f"/keys/{key_id}", "/policy/GET%20%2Fstreams%2F**")
    found = {unescape("".join(one)) for path in pages for one in _LABEL.findall(html_of(ops, path))}
    assert len(found) > 15
    assert found - set(LABELS) == set()


def lasting(text: str) -> str:
    """Without what differs between explanations: the id of the request, and when a quota is restored."""
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", re.sub("[0-9a-f]{32}", "ID", " ".join(text.split())))


def test_the_explanation_matches_the_api(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    ops = Admin(address=admin_address(sidecar))
    key_id, _ = ops.issue(scopes=["streams:read"])
    person = Person(ops)
    for target in ("/streams/1", "/billing/1", "/nowhere"):
        told = ops.call("POST", "explain", {"method": "GET", "target": target, "key": key_id}).json
        page = person.explain(target, key_id)
        facts = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)
        shown = [(words_of(label).lower(), lasting(words_of(text))) for label, text in facts]
        lines = [(line["label"].strip().lower(), lasting(line["text"])) for line in told["lines"]]
        assert shown == lines
        outcome = "Allowed" if told["decision"] == "allow" else f"Refused: {told['reason']}"
        assert missing(words_of(page), outcome, *([told["route"], told["where"]] if told["route"] else [])) == []
        assert told["status"] is None or missing(words_of(page), f"with {told['status']}") == []
