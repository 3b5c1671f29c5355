"""A draft loads without a warning, covers every operation, and is never wider than the document."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sidecar.config.errors import ConfigError
from sidecar.core.patterns import Pattern
from sidecar.core.policy import missing_scopes
from sidecar.gate.compile import route_table
from sidecar.rehearsal.openapi.coverage import compare
from sidecar.rehearsal.openapi.draft import draft
from sidecar.rehearsal.openapi.requirements import Operation, ScopeNames, requirement_of
from tests.unit.rehearsal.openapi.documents import SETTINGS, described, document, drafted, loaded, policies

GITHUB = """
openapi: 3.0.3
info: {title: Code hosting}
servers: [{url: https://api.example.com}]
components:
  securitySchemes:
    token: {type: http, scheme: bearer}
  parameters:
    ref: {name: ref, in: path, schema: {type: string}, x-multi-segment: true}
security: [token: []]
paths:
  /meta: {get: {tags: [meta], security: []}}
  /user/repos: {get: {tags: [repos]}, post: {tags: [repos]}}
  /users/{name}: {get: {tags: [users], operationId: users/get}}
  /users/me: {get: {tags: [users]}}
  /repos/{owner}/{repo}/compare/{base}...{head}: {get: {tags: [repos]}}
  /repos/{owner}/{repo}/contents/{path}: {get: {tags: [contents]}, put: {tags: [contents]}}
  /repos/{owner}/{repo}/git/ref/{ref}: {get: {tags: [git], parameters: [{$ref: '#/components/parameters/ref'}]}}
  /repos/{owner}/{repo}/releases/{id}: {get: {tags: [repos]}}
  /repos/{owner}/{repo}/releases/latest: {get: {tags: [repos]}}
  /repos/{owner}/{repo}/releases/{id}/assets: {get: {tags: [Release assets]}}
  /repos/{owner}/{repo}/releases/tags/{tag}: {get: {tags: [repos]}}
"""
KUBERNETES = """
swagger: "2.0"
info: {title: Clusters}
securityDefinitions: {token: {type: apiKey, in: header, name: authorization}}
security: [token: []]
paths:
  /version/: {get: {tags: [version]}}
  /api/v1/namespaces/{namespace}/pods/{name}: {parameters: [{in: path, name: name}], get: {tags: [core_v1]}}
  /api/v1/namespaces/{namespace}/pods/{name}/proxy:
    get: &proxy {tags: [core_v1]}
    head: *proxy
    options: *proxy
  /api/v1/namespaces/{namespace}/pods/{name}/proxy/{path}: {get: *proxy, head: *proxy, delete: *proxy}
"""
CLOUD = """
openapi: 3.1.0
info: {title: Cloud}
servers: [{url: "https://compute.example.com/{version}", variables: {version: {default: v1, enum: [v1, beta]}}}]
components:
  securitySchemes:
    o:
      type: oauth2
      flows:
        implicit:
          scopes: {"https://x/auth/all": Everything, "https://x/auth/read": Reading, "a b": One, a_b: Other, "*": All}
paths:
  /operations/{id}: {get: {security: [{o: ["https://x/auth/read"]}, {o: ["https://x/auth/all"]}]}}
  /operations/{id}:cancel: {post: {security: [{o: ["https://x/auth/all"]}]}}
  /scopes: {get: {security: [{o: ["a b"]}]}, put: {security: [{o: [a_b]}]}, post: {security: [{o: ["*"]}]}}
  /both: {get: {security: [{o: ["https://x/auth/read", a_b]}]}}
  /either: {get: {security: [{o: ["https://x/auth/read", a_b]}, {o: ["*"]}]}}
  /login: {post: {security: [{}]}}
  /undeclared: {get: {security: [{o: ["made:up"]}]}}
"""
TELEPHONY = """
openapi: 3.0.1
components: {securitySchemes: {account: {type: http, scheme: basic}}}
paths:
  /2010-04-01/Accounts.json: {get: {security: [account: []]}, post: {security: [account: []]}}
  /2010-04-01/Accounts/{Sid}.json: {get: {security: [account: []]}, delete: {security: [account: []]}}
  /2010-04-01/Accounts/{Sid}/{Kind}.json: {get: {}}
  /2010-04-01/Accounts/{Sid}/Calls.json: {get: {security: [account: []]}}
"""
FILES = """
openapi: 3.0.2
components: {securitySchemes: {o: {type: oauth2, flows: {}}}}
security: [o: []]
paths:
  /oauth2/token: {post: {security: [], operationId: get_token}}
  /oauth2/token#refresh: {post: {security: [], operationId: refresh_token}}
  /files/{id}: {get: {tags: [Files]}}
  /files/{file_id}#shared: {get: {tags: [Shared links]}}
"""
DOCUMENTS = {"github": GITHUB, "kubernetes": KUBERNETES, "cloud": CLOUD, "telephony": TELEPHONY, "files": FILES}


@pytest.mark.parametrize("text", DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_draft_loads_without_a_warning_and_agrees_with_its_document(text: str, tmp_path: Path) -> None:
    _, config, warnings = drafted(tmp_path, described(text))
    assert (config.warnings, warnings) == ((), [])


def test_tags_name_the_scopes_where_the_document_names_none(tmp_path: Path) -> None:
    text, config, _ = drafted(tmp_path, described(GITHUB))
    assert policies(config) == {
        "GET /meta": "public",
        "GET /user/repos": ["repos:read"],
        "POST /user/repos": ["repos:write"],
        "GET /users/{name}": ["users:read"],
        "GET /users/me": ["users:read"],
        "GET /repos/{owner}/{repo}/compare/{base_head}": ["repos:read"],
        "GET /repos/{owner}/{repo}/contents/**": ["contents:read"],
        "PUT /repos/{owner}/{repo}/contents/**": ["contents:write"],
        "GET /repos/{owner}/{repo}/git/ref/**": ["git:read"],
        "GET /repos/{owner}/{repo}/releases/{id}": ["repos:read"],
        "GET /repos/{owner}/{repo}/releases/latest": ["repos:read"],
        "GET /repos/{owner}/{repo}/releases/{id}/assets": ["release-assets:read"],
        "GET /repos/{owner}/{repo}/releases/tags/{tag}": ["repos:read"],
        # Is it the assets of the release `tags`, or the tag `assets`? Who may see both may see it.
        "GET /repos/{owner}/{repo}/releases/tags/assets": {"release-assets:read", "repos:read"},
    }
    assert "# Drafted from api.yaml (Code hosting): 13 operations." in text
    assert "- GET /users/{name}: {scopes: [users:read]}    # users/get" in text
    assert "# `{base}...{head}` has several parameters, but a route takes one in a segment." in text
    assert "# `{path}` may contain slashes: `**` stands for it, and also matches nothing." in text


def test_scopes_of_the_document_keep_their_names_where_they_can(tmp_path: Path) -> None:
    text, config, _ = drafted(tmp_path, described(CLOUD))
    everything, reading = "https://x/auth/all", "https://x/auth/read"
    assert policies(config) == {
        f"{method} /{base}{path}": policy
        for method, path, policy in (
            ("GET", "/operations/{id}", [everything, reading]),
            ("POST", "/operations/{id}:cancel", [everything]),
            ("GET", "/scopes", ["a_b-2"]),
            ("PUT", "/scopes", ["a_b"]),
            ("POST", "/scopes", ["all"]),
            ("GET", "/both", {reading, "a_b"}),
            ("GET", "/either", {reading, "a_b", "all"}),
            ("POST", "/login", "public"),
            ("GET", "/undeclared", ["made:up"]),
        )
        for base in ("v1", "beta")
    }
    assert config.catalogue.scopes["all"].description == "All"
    assert 'a_b-2: "One"    # a b in the document' in text
    assert "which a route cannot express: it requires all of them." in text


def test_paths_that_a_router_takes_for_one_are_one_route(tmp_path: Path) -> None:
    text, config, _ = drafted(tmp_path, described(FILES))
    assert policies(config) == {
        "POST /oauth2/token": "public",
        "GET /files/{id}": {"files:read", "shared-links:read"},
    }
    assert "# One route to a router: `GET /files/{id}`, `GET /files/{file_id}#shared`." in text
    assert "# get_token, refresh_token" in text


def test_head_has_its_own_route_only_if_its_requirements_differ(tmp_path: Path) -> None:
    item = {"get": {"security": [{"oauth": ["read"]}]}, "head": {"security": [{"oauth": ["read"]}]}}
    other = {**item, "head": {"security": []}}
    _, config, warnings = drafted(tmp_path, described(document({"/a": item, "/b": other})))
    assert policies(config) == {"GET /a": ["read"], "GET /b": ["read"], "HEAD /b": "public"}
    assert warnings == []


def test_head_is_not_opened_by_a_public_route_for_get_below_it(tmp_path: Path) -> None:
    closed, opened = {"head": {"security": [{"oauth": ["read"]}]}}, {"get": {"security": [{}]}}
    _, config, warnings = drafted(tmp_path, described(document({"/{y}/{path}": closed, "/{path}/{y}": opened})))
    assert policies(config) == {
        "HEAD /{y}/**": ["read"],
        "GET /{path}/{y}": "public",
        "HEAD /{path}/{y}": ["read"],
    }
    assert warnings == []


def test_missing_security_does_not_make_an_operation_public(tmp_path: Path) -> None:
    text, config, _ = drafted(tmp_path, described({"openapi": "3.1.0", "paths": {"/a": {"get": {}, "put": {}}}}))
    assert policies(config) == {"GET /a": ["a:read"], "PUT /a": ["a:write"]}
    assert "# The document says nothing about security: scopes are named by tags, and no route is public." in text


def test_tags_never_take_the_name_of_a_scope_or_of_another_tag(tmp_path: Path) -> None:
    schemes = {"o": {"type": "oauth2", "flows": {"x": {"scopes": {"users:read": "Of the document"}}}}}
    paths: Any = {
        "/a": {"get": {"tags": ["Users"], "security": [{"o": []}]}},
        "/b": {"get": {"security": [{"o": ["users:read"]}]}},
        "/c": {"get": {"tags": ["users!"], "security": [{"o": []}]}},
        "/d": {"get": {"tags": ["日本"], "security": [{"o": []}]}},
    }
    written = {"openapi": "3.1.0", "paths": paths, "components": {"securitySchemes": schemes}}
    _, config, warnings = drafted(tmp_path, described(written))
    assert policies(config) == {
        "GET /a": ["users-2:read"],
        "GET /b": ["users:read"],
        "GET /c": ["users-2-2:read"],
        "GET /d": ["api:read"],
    }
    assert warnings == []


def test_text_from_the_document_is_never_code(tmp_path: Path) -> None:
    odd = 'x ${HOME} $$ "quoted" \\ # no comment\n- GET /evil: {public: true}\u2028\x1b[31m'
    schemes = {"o": {"type": "oauth2", "flows": {"x": {"scopes": {"yes": odd, "${HOME}": odd, "1e3": odd}}}}}
    operation = {"operationId": odd, "security": [{"o": ["yes", "${HOME}", "1e3"]}], "tags": [odd]}
    written = {
        "openapi": "3.1.0",
        "info": {"title": odd},
        "paths": {"/$metadata": {"get": operation}, odd: {"get": {"tags": [odd]}}},
        "components": {"securitySchemes": schemes},
    }
    text, config, warnings = drafted(tmp_path, described(written))
    assert policies(config)["GET /$metadata"] == {"yes", "${HOME}", "1e3"}
    assert "${HOME} $$" in config.catalogue.scopes["yes"].description
    assert len(config.routes) == 2 and "\x1b" not in text and warnings == []


def test_routes_alone_can_be_added_to_a_configuration(tmp_path: Path) -> None:
    text = draft(described(FILES), routes_only=True).text
    assert "listen:" not in text
    assert len(loaded(tmp_path, SETTINGS + text).routes) == 2


def test_a_draft_that_no_configuration_can_hold_is_refused() -> None:
    paths: Any = {f"/{number}/{'x' * 3_000}": {"get": {}} for number in range(400)}
    with pytest.raises(ConfigError, match=r"api\.yaml: needs more than a configuration can hold: 1,\d\d\d KiB"):
        draft(described({"openapi": "3.1.0", "paths": paths}))


# Random documents.

LITERALS = st.sampled_from(["a", "b", "users", "x.json", "A", "@me", "a b", "%C3%A9", "a:go", "$x", ""])
PARAMETERS = st.sampled_from(
    ["{x}", "{y}", "{x}.json", "a{x}", "{x}:go", "{x}b", "{x}-{y}", "{path}", "{z+}", "v{x}b", ":x"]
)
PATHS = st.lists(LITERALS | PARAMETERS, min_size=1, max_size=4).map(lambda segments: "/" + "/".join(segments))
SCOPES = st.lists(st.sampled_from(["read", "write", "admin", "a b", "a_b", "*", "é"]), max_size=3)
SECURITY: Any = st.none() | st.lists(
    st.builds(lambda scopes: {"oauth": scopes}, SCOPES) | st.sampled_from([{}, {"key": []}]), max_size=3
)
OPERATIONS = st.builds(
    lambda security, tags: {"tags": tags} | ({} if security is None else {"security": security}),
    SECURITY,
    st.lists(st.sampled_from(["Users", "users", "read"]), max_size=1),
)
ITEMS = st.dictionaries(st.sampled_from(["get", "head", "post", "options"]), OPERATIONS, min_size=1, max_size=3)
RANDOM = st.dictionaries(PATHS, ITEMS, min_size=1, max_size=7)
VALUES = ["a", "b", "users", "x.json", "ab", "go", "vb", "me"]


# Shrinking a document takes minutes; what fails is small enough to be read.
@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(paths=RANDOM, whole=SECURITY, values=st.lists(st.sampled_from(VALUES), min_size=9, max_size=9))
def test_a_draft_of_any_document_loads_and_covers_every_operation(
    tmp_path: Path, paths: Any, whole: Any, values: list[str]
) -> None:
    description = described(document(paths, **({} if whole is None else {"security": whole})))
    _, config, warnings = drafted(tmp_path, description)
    # A document may open a path below one that is closed, which is warned of as anywhere.
    assert [warning for warning in config.warnings if "needs no key, though" not in str(warning)] == []
    assert warnings == []
    names, table = ScopeNames(description.scopes), route_table(config)
    demands = [(operation, requirement_of(operation, names)) for operation in description.operations]
    for operation in description.operations:
        pick = iter(values)
        segments = [each.example(next(pick))[0] for each in _segments(operation)]
        path = "/" + "/".join([*segments, *(["x", "y"] if operation.pattern.rest else [])])
        match = table.match(operation.method, path)
        if match is None:
            # Only where a verb may follow the parameter does it take no colon.
            assert ":" in path
            continue
        # Whoever passes satisfies an operation that the request may mean.
        policy = match.route.policy
        granted = policy.all_scopes | set(sorted(policy.any_scopes)[:1])
        methods = {operation.method} | ({"GET"} if operation.method == "HEAD" else set())
        wanted = [demand for each, demand in demands if each.method in methods and _takes(each, path)]
        assert any(each.public if policy.public else not missing_scopes(each.policy, granted) for each in wanted)


def _segments(operation: Operation) -> list[Pattern]:
    pattern = operation.pattern
    return [Pattern(segments=(segment,), rest=False) for segment in pattern.segments]


def _takes(operation: Operation, path: str) -> bool:
    segments = tuple(path.split("/")[1:])
    return Pattern(segments=segments, rest=False).within(operation.pattern)


@pytest.mark.parametrize("length", [900, 1000, 1030, 4000])
def test_a_path_that_is_longer_than_a_key_of_yaml_may_be_gets_a_route(tmp_path: Path, length: int) -> None:
    path = "/$x/" + "a" * length + "/{id}"
    operations = {"get": {"operationId": "long", "security": [{"oauth": ["read"]}]}, "delete": {"security": []}}
    text, config, warnings = drafted(tmp_path, described(document({path: operations})))
    assert warnings == []
    assert [(each.pattern, each.policy.public) for each in config.routes] == [(path, False), (path, True)]
    assert ("- {path:" in text) == (length >= 1000)
    text = SETTINGS + "routes: [{GET /other: {}}]\n"
    found = compare(described(document({path: operations})), loaded(tmp_path, text))
    missing = next(each for each in found if each.operation.startswith("GET"))
    [entry] = re.findall("add `(.*)`", missing.message)
    assert loaded(tmp_path, SETTINGS + f"scopes: {{read: Read}}\nroutes:\n{entry}\n").routes[0].pattern == path
