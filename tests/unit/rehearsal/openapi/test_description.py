"""What is read from a document: every operation, with its path and requirements."""

import json
from typing import Any

import pytest

from sidecar.config.errors import ConfigError
from sidecar.rehearsal.openapi.description import description_of
from tests.unit.rehearsal.openapi.documents import OAUTH, described, document, names

GET: Any = {"get": {}}


def remarks(written: Any) -> list[str]:
    return [problem.message for problem in described(written).remarks]


def problems(written: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        described(written)
    return [str(problem) for problem in caught.value.problems]


def test_every_method_of_every_path_is_an_operation() -> None:
    item: Any = {method: {} for method in ("get", "put", "post", "delete", "options", "head", "patch", "query")}
    found = described(document({"/a/{b}": {**item, "summary": "x", "x-more": {"get": {}}}, "x-paths": GET}))
    methods = ("GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "QUERY")
    assert names(found) == [f"{method} /a/{{b}}" for method in methods]


def test_methods_beyond_those_have_a_section_of_their_own() -> None:
    item: Any = {"additionalOperations": {"COPY": {}, "copy": {}, "Foo": {}, "FOO": {}, "no method": {}}}
    assert names(described(document({"/a": item}))) == ["COPY /a", "COPY /a", "Foo /a"]
    assert "`FOO` and `Foo` differ only in case" in remarks(document({"/a": item}))[0]


@pytest.mark.parametrize("version", ["3.0.0", "3.0.3", "3.1.0", "3.2.0", 3.1])
def test_versions_of_openapi_are_known(version: Any) -> None:
    assert names(described({"openapi": version, "paths": {"/a": GET}})) == ["GET /a"]


def test_swagger_has_a_base_path_and_its_own_security_schemes() -> None:
    text = """
swagger: 2.0
basePath: v1/
securityDefinitions:
  auth: {type: oauth2, flow: implicit, scopes: {read: Read, x-not: one}}
  key: {type: apiKey, in: query, name: api_key}
security: [auth: [read]]
paths:
  /a: {get: {}}
"""
    found = described(text)
    assert names(found) == ["GET /v1/a"]
    assert [(scheme.name, scheme.kind, dict(scheme.scopes)) for scheme in found.schemes] == [
        ("auth", "oauth2", {"read": "Read"}),
        ("key", "apiKey in query api_key", {}),
    ]
    assert found.operations[0].security == (frozenset({"read"}),)


SERVERS = {
    "none": ([], [""]),
    "a root": ([{"url": "https://api.example.com"}], [""]),
    "a slash": ([{"url": "/"}], [""]),
    "a path": ([{"url": "https://api.example.com/v1/"}], ["/v1"]),
    "a relative path": ([{"url": "v1"}], ["/v1"]),
    "no scheme": ([{"url": "//api.example.com:8443/v1?x#y"}], ["/v1"]),
    "two of one path": ([{"url": "https://a/v1"}, {"url": "https://b/v1"}], ["/v1"]),
    "two": ([{"url": "https://a/v1"}, {"url": "https://a/v2"}], ["/v1", "/v2"]),
    "a variable": ([{"url": "https://{h}/{v}", "variables": {"h": {"default": "a"}, "v": {"default": "v1"}}}], ["/v1"]),
    "an authority": ([{"url": "{base}/v1", "variables": {"base": {"default": "https://a/x"}}}], ["/x/v1"]),
    "a choice": ([{"url": "/{v}", "variables": {"v": {"default": "v1", "enum": ["v1", "v2"]}}}], ["/v1", "/v2"]),
}


@pytest.mark.parametrize(("servers", "bases"), SERVERS.values(), ids=SERVERS)
def test_paths_begin_as_the_servers_say(servers: Any, bases: list[str]) -> None:
    assert names(described(document({"/a": GET}, servers=servers))) == [f"GET {base}/a" for base in bases]


def test_the_nearest_servers_count_and_a_given_base_path_before_all() -> None:
    item: Any = {"servers": [{"url": "/item"}], "get": {}, "put": {"servers": [{"url": "/own"}]}}
    written = document({"/a": item, "/b": GET}, servers=[{"url": "/all"}])
    assert names(described(written)) == ["GET /item/a", "PUT /own/a", "GET /all/b"]
    assert names(described(written, "/v9/")) == ["GET /v9/a", "PUT /v9/a", "GET /v9/b"]
    assert names(described(written, "/")) == ["GET /a", "PUT /a", "GET /b"]


def test_webhooks_and_callbacks_are_not_operations() -> None:
    operation: Any = {"callbacks": {"done": {"{$request.body#/url}": {"post": {}}}}}
    found = described(document({"/a": {"get": operation}}, webhooks={"new": {"post": {}}}))
    assert names(found) == ["GET /a"]


def test_references_within_the_document_are_followed() -> None:
    written = {
        "openapi": "3.1.0",
        "paths": {
            "/a": {"$ref": "#/components/pathItems/item"},
            "/b~c/{x}": {"parameters": [{"$ref": "#/components/parameters/x"}], "get": {}},
            "/d": {"$ref": "#/paths/~1b~0c~1%7Bx%7D"},
        },
        "components": {
            "pathItems": {"item": {"post": {"tags": ["Items"]}}},
            "parameters": {"x": {"name": "x", "in": "path", "schema": {"x-multi-segment": True}}},
        },
    }
    found = described(written)
    assert names(found) == ["POST /a", "GET /b~c/{x}", "GET /d"]
    assert [str(operation.pattern) for operation in found.operations] == ["/a", "/b~c/**", "/d"]
    assert found.operations[0].tag == "Items"


def test_dangling_references_are_reported() -> None:
    paths = {"/a": GET, "/b": {"$ref": "b.yaml"}, "/c": {"get": {"$ref": "c.yaml"}}, "/d": {"$ref": "#/paths/none"}}
    found = described(document(paths, security=[]))
    assert names(found) == ["GET /a", "GET /c"]
    assert [problem.message for problem in found.remarks] == [
        "`/d`: `#/paths/none` is not in the document",
        "the reference `b.yaml`, and 1 other: other files are not read; bundle the document into one",
    ]
    # An operation in another file may need a key.
    assert [operation.public for operation in found.operations] == [True, False]


def test_a_reference_to_itself_is_a_problem() -> None:
    assert problems(document({"/a": {"$ref": "#/paths/~1a"}})) == ["api.yaml:4:9: `/a` refers to itself"]


SECURITY: Any = {
    "nothing": (None, None, None, False),
    "open": ([], None, (), True),
    "its own": ([{"key": []}], [], (), True),
    "of the document": ([{"oauth": ["read"]}], None, (frozenset({"read"}),), False),
    "alternatives": (None, [{"oauth": ["read"]}, {"key": []}], (frozenset({"read"}), frozenset()), False),
    "both": (None, [{"oauth": ["read"], "key": ["admin"]}], (frozenset({"read", "admin"}),), False),
    "optional": (None, [{"oauth": ["read"]}, {}], (frozenset({"read"}),), True),
    "optional first": (None, [{}, {"oauth": ["read"]}], (frozenset({"read"}),), True),
}


@pytest.mark.parametrize(("whole", "own", "alternatives", "public"), SECURITY.values(), ids=SECURITY)
def test_the_security_of_an_operation_is_its_own_or_the_documents(
    whole: Any, own: Any, alternatives: Any, public: bool
) -> None:
    operation: Any = {} if own is None else {"security": own}
    others = {} if whole is None else {"security": whole}
    found = described(document({"/a": {"get": operation}}, **others)).operations[0]
    assert (found.security, found.public) == (alternatives, public)


def test_an_undefined_scheme_is_reported() -> None:
    written = document({"/a": {"get": {"security": [{"mistyped": []}]}}})
    assert remarks(written) == ["'mistyped' is not a security scheme of the document"]
    assert not described(written).operations[0].public


def test_a_path_parameter_may_hold_slashes_by_its_pattern() -> None:
    def pattern_of(pattern: str) -> str:
        parameter = {"name": "name", "in": "path", "schema": {"pattern": pattern}}
        return str(described(document({"/v1/{name}": {"get": {"parameters": [parameter]}}})).operations[0].pattern)

    assert pattern_of("^projects/[^/]+$") == "/v1/**"
    assert pattern_of("^[^/]+$") == "/v1/{name}"


@pytest.mark.parametrize(
    ("path", "tag"), [("/v1/users/{id}", "users"), ("/api/2024-01-01/Accounts.json", "Accounts"), ("/{id}", "api")]
)
def test_an_operation_without_a_tag_is_grouped_by_its_path(path: str, tag: str) -> None:
    assert described(document({path: GET})).operations[0].tag == tag


def test_operations_that_no_route_can_match_are_reported() -> None:
    found = described(document({"/a": {"trace": {}, "get": {}, "gett": {}}, "b": GET}))
    assert names(found) == ["GET /a", "GET /b"]
    assert [problem.message for problem in found.remarks] == [
        "`TRACE /a`: such requests are always answered 405",
        "`gett` of `/a` is no method, and is left out (did you mean 'get'?)",
        "`b` does not begin with a slash: one is added",
    ]


WRONG = {
    "a list": ("- a\n", ["1:1: is not an OpenAPI document: it must be a mapping with `openapi` and `paths`"]),
    "another file": ("a: 1\n", ["1:1: is not an OpenAPI document: it has neither `openapi: 3.…` nor `swagger: '2.0'`"]),
    "a version": ("openapi: 4.0\npaths: {}\n", ["1:10: '4.0' is not a supported version: 2.0, 3.0, 3.1 and 3.2 are"]),
    "no paths": ("openapi: 3.1.0\n", ["1:1: describes no operation: its `paths` are missing or empty"]),
    "a path twice": (
        "openapi: 3.1.0\npaths:\n  /a: {get: {}}\n  /a: {}\n",
        ["4:3: '/a' is a duplicate, first in line 3: leave one out"],
    ),
    "types": (
        "openapi: 3.1.0\nservers: 5\npaths:\n  /a: []\n  /b: {get: 5, put: {tags: x, security: {}}}\n",
        [
            "2:10: `servers` must be a list",
            "4:7: `/a` must be a mapping, not a list",
            "5:13: `GET /b` must be a mapping, not text",
            "5:28: `tags` must be a list",
            "5:41: `security` must be a list",
        ],
    ),
    "alternatives": (
        "openapi: 3.1.0\nsecurity: [null, x, {a: b}]\npaths: {/a: {get: {}}}\n",
        [
            "2:12: an item of `security` must be a mapping of schemes to scopes",
            "2:18: an item of `security` must be a mapping of schemes to scopes",
            "2:25: the scopes of a scheme must be a list",
        ],
    ),
    "a long path": (
        "openapi: 3.1.0\npaths:\n  ? /" + "a" * 5000 + "\n  : {get: {}}\n",
        ["3:5: a path of 5,001 characters is longer than requests may be"],
    ),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG)
def test_all_errors_are_reported_at_once(text: str, expected: list[str]) -> None:
    found = [problem.removeprefix("api.yaml:") for problem in problems(text)]
    assert [problem for problem in found if problem in expected] == expected


def test_a_document_has_no_end_of_operations() -> None:
    paths = {f"/{number}": GET for number in range(1_001)}
    servers = [{"url": f"/v{number}"} for number in range(20)]
    text = json.dumps({"openapi": "3.1.0", "servers": servers, "paths": paths})
    with pytest.raises(ConfigError, match=r"has more than 20,000 operations"):
        description_of(text.encode(), "api.json")


def test_schemes_are_listed_with_their_kind() -> None:
    schemes = {**OAUTH, "b": {"type": "http", "scheme": "bearer"}, "o": {"type": "openIdConnect"}}
    found = described({"openapi": "3.1.0", "paths": {"/a": GET}, "components": {"securitySchemes": schemes}})
    assert [(scheme.name, scheme.kind) for scheme in found.schemes] == [
        ("oauth", "oauth2"),
        ("key", "apiKey in header X-Key"),
        ("b", "http bearer"),
        ("o", "openIdConnect"),
    ]
