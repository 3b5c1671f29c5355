"""Differences between a document and a configuration, each finding with both locations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sidecar.rehearsal.openapi.coverage import Finding, compare
from tests.unit.rehearsal.openapi.documents import SETTINGS, described, document, loaded

SCOPES = "scopes: {read: R, write: {includes: [read]}, admin: {includes: [write]}, other: O}\n"
ROUTE = "`GET /a` (sidecar.yaml:5)"


def found(folder: Path, paths: Any, routes: str, settings: str = "", **others: Any) -> Sequence[Finding]:
    config = loaded(folder, f"{SETTINGS}{SCOPES}{settings}routes: [{routes}]\n")
    return compare(described(document(paths, **others)), config)


def messages(findings: Sequence[Finding], folder: Path) -> list[str]:
    return [f"{finding.kind}: {finding.message.replace(str(folder) + '/', '')}" for finding in findings]


def needs(*scopes: str) -> Any:
    return {"security": [{"oauth": [scope]} for scope in scopes]}


READ = {"get": needs("read")}


def test_equal_documents_have_no_findings(tmp_path: Path) -> None:
    paths = {
        "/items/{id}": {**READ, "put": needs("write"), "delete": {"security": [{"oauth": ["admin", "other"]}]}},
        "/login": {"post": {"security": []}},
        "/silent": {"get": {}},
        "/keys": {"get": {"security": [{"key": []}]}},
        "/either": {"get": needs("read", "other")},
    }
    routes = """
- GET /items/{item}: {scopes: [read]}
- PUT /items/{item}: {scopes: [write]}
- DELETE /items/{item}: {all_scopes: [admin, other]}
- POST /login: {public: true}
- GET /silent: {public: true}
- GET /keys: {}
- GET /either: {scopes: [other, read]}
- GET /health: {public: true, respond: {ok: true}}
- "* /internal/**": {deny: true}
"""
    config = loaded(tmp_path, f"{SETTINGS}{SCOPES}routes: {routes}")
    assert compare(described(document(paths)), config) == []


UNCOVERED = {
    "no route": ("GET /other: {}", "`GET /items/{id}`: no route covers it: add `- GET /items/{id}: {scopes: [read]}`"),
    "another method": ("'PUT /items/{id}': {}", "; the path has routes for PUT"),
    "a slash at its end": (
        "'GET /items/{id}/': {}",
        "; but for the slash at its end, `GET /items/{id}/` (sidecar.yaml:5) does",
    ),
    "another case": ("'GET /Items/{id}': {}", "no route covers it"),
    "a literal": ("GET /items/7: {}", "no route covers it"),
    "a hole": ("GET /items/**: {}, 'GET /items/{id}': {deny: true}", "is denied by `GET /items/{id}` (sidecar.yaml:5)"),
}


@pytest.mark.parametrize(("routes", "expected"), UNCOVERED.values(), ids=UNCOVERED)
def test_an_operation_that_no_route_covers_is_found(routes: str, expected: str, tmp_path: Path) -> None:
    told = messages(found(tmp_path, {"/items/{id}": READ}, routes), tmp_path)
    assert [message for message in told if message.startswith("uncovered: ") and expected in message], told


def test_a_parameter_with_slashes_may_be_covered_in_part(tmp_path: Path) -> None:
    told = messages(found(tmp_path, {"/files/{path}": READ}, "'GET /files/{name}': {scopes: [read]}"), tmp_path)
    covered = "only a part of its paths is covered, by `GET /files/{name}` (sidecar.yaml:5): add `- GET /files/**: "
    assert covered in told[0]


SECURITY = {
    "open there": (
        {"security": []},
        "{scopes: [read]}",
        f"the document opens it to everybody, but {ROUTE} needs a key",
    ),
    "open here": (needs("read"), "{public: true}", f"the document requires credentials, but {ROUTE} is public"),
    "open here, a key there": (
        {"security": [{"key": []}]},
        "{public: true}",
        f"the document requires credentials, but {ROUTE} is public",
    ),
    "no scope here": (needs("read"), "{}", f"the document requires 'read', but for {ROUTE} no scope at all is enough"),
    "less here": (
        needs("write"),
        "{scopes: [read]}",
        f"the document requires 'write', but for {ROUTE} 'read' is enough",
    ),
    "more here": (
        needs("read"),
        "{scopes: [write]}",
        f"'read' is enough for the document, but {ROUTE} requires 'write'",
    ),
    "all here, any there": (
        needs("read", "other"),
        "{all_scopes: [read, other]}",
        f"'other' is enough for the document, but {ROUTE} requires 'read'",
    ),
    "any here, all there": (
        {"security": [{"oauth": ["admin", "other"]}]},
        "{scopes: [admin, other]}",
        f"the document requires 'other', but for {ROUTE} 'admin' is enough",
    ),
    "a choice here": (
        needs("read"),
        "{scopes: [read, other]}",
        f"the document requires 'read', but for {ROUTE} 'other' is enough",
    ),
    "unknown here": (
        needs("raed"),
        "{scopes: [read]}",
        f"the document requires 'raed' (did you mean 'read'?), which is not in `scopes`; {ROUTE} covers it",
    ),
}


@pytest.mark.parametrize(("operation", "policy", "expected"), SECURITY.values(), ids=SECURITY)
def test_differing_security_is_found(operation: Any, policy: str, expected: str, tmp_path: Path) -> None:
    findings = found(tmp_path, {"/a": {"get": operation}}, f"GET /a: {policy}")
    assert messages(findings, tmp_path) == [f"security: `GET /a`: {expected}"]


def test_what_a_scope_includes_counts(tmp_path: Path) -> None:
    assert found(tmp_path, {"/a": {"get": needs("read", "write", "admin")}}, "GET /a: {scopes: [read]}") == []


def test_an_unknown_scope_is_reported_once(tmp_path: Path) -> None:
    paths = {f"/{name}": {"get": needs("gone")} for name in "abc"}
    findings = found(tmp_path, paths, "'GET /{x}': {scopes: [read]}")
    assert [finding.kind for finding in findings] == ["security"]


def test_a_route_that_matches_no_operation_is_found(tmp_path: Path) -> None:
    routes = "'GET /items/{id}': {scopes: [read]}, 'PUT /items/{id}': {}, GET /old/**: {}, '* /x': {deny: true}"
    findings = found(tmp_path, {"/items/{id}": READ}, routes)
    assert messages(findings, tmp_path) == [
        "unmatched: `PUT /items/{id}` matches no operation of the document",
        "unmatched: `GET /old/**` matches no operation of the document",
    ]
    assert str(findings[0]).startswith(f"{tmp_path}/sidecar.yaml:5:1: warning: ")


def test_paths_compare_as_the_configuration_says(tmp_path: Path) -> None:
    paths = {"/Items/{id}": READ}
    routes = "'GET /items/{id}': {scopes: [read]}"
    assert {finding.kind for finding in found(tmp_path, paths, routes)} == {"uncovered", "unmatched", "remark"}
    assert found(tmp_path, paths, routes, "paths: {case_sensitive: false}\n") == []


def test_paths_that_two_operations_share_are_found_unless_a_route_is_for_them(tmp_path: Path) -> None:
    paths = {"/{kind}/list": READ, "/users/{id}": {"get": needs("other")}}
    wide = "GET /users/**: {scopes: [other]}, 'GET /{kind}/list': {scopes: [read]}, GET /users/list: {scopes: [admin]}"
    assert found(tmp_path, paths, wide) == []
    narrow = "'GET /users/{id}': {scopes: [other]}, GET /**: {scopes: [read]}"
    told = messages(found(tmp_path, paths, narrow), tmp_path)
    assert len(told) == 1
    assert told[0].startswith("ambiguous: `GET /users/{id}` and `GET /{kind}/list` (api.yaml:")
    assert told[0].endswith("`GET /users/{id}` (sidecar.yaml:5) decides; add `GET /users/list`")


def test_one_route_for_both_operations_is_not_ambiguous(tmp_path: Path) -> None:
    paths = {"/{kind}/list": READ, "/users/{id}": READ}
    assert found(tmp_path, paths, "GET /**: {scopes: [read]}") == []


def test_a_route_for_part_of_an_operation_is_compared_with_it(tmp_path: Path) -> None:
    routes = "GET /files/**: {scopes: [read]}, 'GET /files/{name}': {public: true}"
    kinds = [finding.kind for finding in found(tmp_path, {"/files/{path}": READ}, routes)]
    assert "security" in kinds
    own = {"/files/{path}": READ, "/files/{name}": {"get": {"security": []}}}
    assert "security" not in [finding.kind for finding in found(tmp_path, own, routes)]


def test_credentials_that_are_not_keys_are_left_to_the_service(tmp_path: Path) -> None:
    settings = "keys: {pass_through: [{header: X-Session}]}\n"
    assert found(tmp_path, {"/a": READ}, "GET /a: {pass_through: only}", settings) == []


def test_values_read_differently_than_written_are_notes(tmp_path: Path) -> None:
    paths = {"/files/{path}": READ, "/{a}": READ, "/{b}": READ}
    findings = found(tmp_path, paths, "GET /**: {scopes: [read]}")
    assert [finding.is_warning for finding in findings] == [False, False]
    assert "`GET /{a}` is one path to a router with `GET /{b}` (line" in messages(findings, tmp_path)[1]
    assert ": note: `GET /files/{path}`: `{path}` may contain slashes" in str(findings[0])


def test_a_document_with_another_base_path_is_reported(tmp_path: Path) -> None:
    servers = [{"url": "https://api.example.com/v1"}]
    findings = found(tmp_path, {"/a": READ}, "GET /a: {scopes: [read]}", servers=servers)
    assert "name it with --base-path" in messages(findings, tmp_path)[0]
    config = loaded(tmp_path, f"{SETTINGS}{SCOPES}routes: [GET /a: {{scopes: [read]}}]\n")
    assert compare(described(document({"/a": READ}, servers=servers), "/"), config) == []


def test_findings_come_in_the_order_of_the_document(tmp_path: Path) -> None:
    paths = {"/c": READ, "/a": READ, "/b": {"get": {"security": []}}}
    findings = found(tmp_path, paths, "GET /b: {scopes: [read]}, GET /x: {}")
    assert [finding.operation for finding in findings] == ["GET /c", "GET /a", "GET /b", ""]
    lines = [finding.place.line for finding in findings[:3]]
    assert lines == sorted(lines) and lines[0] > 1
