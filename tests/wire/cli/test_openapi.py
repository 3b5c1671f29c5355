"""`sidecar routes from-openapi` and `sidecar check --openapi`: what is printed where, and how the commands end."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sidecar.cli.main import main
from sidecar.config.load import NAMES

DOCUMENT = """\
openapi: 3.1.0
info: {title: Streams}
servers: [{url: https://api.example.com/v1}]
components: {securitySchemes: {o: {type: oauth2, flows: {x: {scopes: {read: Reading, write: Writing}}}}}}
security: [o: [read]]
paths:
  /streams/{id}: {get: {operationId: getStream}, delete: {security: [o: [write]]}}
  /files/{path}: {get: {}}
  /status: {get: {security: []}}
"""
DRAFT = """\
# Drafted from api.yaml (Streams): 4 operations.
# Every route except the public ones needs a scope. Review it, and rename what you call differently.
# Security schemes of the document: o (oauth2).
# Keys are expected as `Authorization: Bearer KEY` unless keys.from says otherwise.

listen: 127.0.0.1:8080
upstream: http://127.0.0.1:8000    # the service that the document describes
store: sqlite:keys.db

scopes:
  read: "Reading"
  write: "Writing"

routes:
- GET /v1/streams/{id}: {scopes: [read]}    # getStream
- DELETE /v1/streams/{id}: {scopes: [write]}
# `{path}` may contain slashes: `**` stands for it, and also matches nothing.
- GET /v1/files/**: {scopes: [read]}
- GET /v1/status: {public: true}
"""
OTHER = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:8000
store: sqlite:keys.db
scopes: {read: R, write: W}
routes:
- GET /v1/streams/{id}: {scopes: [write]}
- GET /v1/files/**: {scopes: [read]}
- GET /v1/status: {public: true}
- GET /v1/old: {public: true}
"""
FOUND = [
    "api.yaml:7:19: warning: `GET /v1/streams/{id}`: 'read' is enough for the document, but `GET /v1/streams/{id}` "
    "(sidecar.yaml:6) requires 'write'",
    "api.yaml:7:50: warning: `DELETE /v1/streams/{id}`: no route covers it: "
    "add `- DELETE /v1/streams/{id}: {scopes: [write]}`; the path has routes for GET, HEAD",
    "api.yaml:8:19: note: `GET /v1/files/{path}`: `{path}` may contain slashes: `**` stands for it, "
    "and also matches nothing",
    "sidecar.yaml:9:1: warning: `GET /v1/old` matches no operation of the document",
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in NAMES:
        monkeypatch.delenv(f"SIDECAR_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "api.yaml").write_text(DOCUMENT, encoding="utf-8")
    (tmp_path / "sidecar.yaml").write_text(OTHER, encoding="utf-8")
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def test_a_draft_is_printed_to_stdout_and_passes_every_check(here: Path) -> None:
    done = run("routes", "from-openapi", "api.yaml")
    assert (done.exit_code, done.stdout, done.stderr) == (0, DRAFT, "")
    (here / "draft.yaml").write_text(done.stdout, encoding="utf-8")
    checked = run("check", "--strict", "--openapi", "api.yaml", "draft.yaml")
    assert checked.exit_code == 0
    assert checked.stdout.splitlines() == [
        "draft.yaml: ok (4 routes, 2 scopes, 0 quotas, 0 plans)",
        "api.yaml: 4 operations, 0 warnings, 1 note",
    ]
    assert checked.stderr.splitlines() == [FOUND[2]]


def test_a_draft_may_be_routes_alone_below_another_path(here: Path) -> None:
    text = run("routes", "from-openapi", "--routes-only", "--base-path", "/", "api.yaml").stdout
    assert "listen" not in text and "- GET /status: {public: true}" in text


def test_a_draft_can_be_printed_as_json() -> None:
    told = json.loads(run("routes", "from-openapi", "--json", "api.yaml").stdout)
    assert (told["document"], told["title"], told["operations"]) == ("api.yaml", "Streams", 4)
    assert (told["scopes"], told["tie_breakers"], told["yaml"]) == (["read", "write"], [], DRAFT)
    assert told["routes"][0] == {
        "name": "GET /v1/streams/{id}",
        "public": False,
        "scopes": ["read"],
        "all_scopes": [],
        "remarks": [],
    }


def test_findings_go_to_stderr_and_are_refused_by_strict_alone() -> None:
    done = run("check", "--openapi", "api.yaml")
    assert (done.exit_code, done.stderr.splitlines()) == (0, FOUND)
    assert done.stdout.splitlines()[1] == "api.yaml: 4 operations, 3 warnings, 1 note"
    strict = run("check", "--strict", "--openapi", "api.yaml")
    assert (strict.exit_code, strict.stderr.splitlines()) == (1, FOUND)
    assert strict.stdout.startswith("sidecar.yaml: valid, but --strict allows no warnings")


def test_findings_can_be_printed_as_json() -> None:
    done = run("check", "--json", "--openapi", "api.yaml", "sidecar.yaml")
    told = json.loads(done.stdout)
    assert (told["ok"], told["warnings"], done.stderr) == (True, [], "")
    found = told["openapi"]
    assert (found["document"], found["operations"], found["problems"]) == ("api.yaml", 4, [])
    assert [each["kind"] for each in found["findings"]] == ["security", "uncovered", "remark", "unmatched"]
    first = found["findings"][0]
    assert (first["severity"], first["file"], first["line"], first["column"]) == ("warning", "api.yaml", 7, 19)
    assert first["operation"] == "GET /v1/streams/{id}"
    assert first["route"] == {"name": "GET /v1/streams/{id}", "where": "sidecar.yaml:6"}
    assert "openapi" not in json.loads(run("check", "--json").stdout)


def test_errors_of_both_files_are_reported_at_once(here: Path) -> None:
    (here / "sidecar.yaml").write_text("lisen: x\n", encoding="utf-8")
    (here / "api.yaml").write_text("openapi: 3.1.0\npaths: []\n", encoding="utf-8")
    done = run("check", "--openapi", "api.yaml")
    assert (done.exit_code, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("sidecar.yaml:1:1: ") and lines[-1].startswith("api.yaml:2:8: `paths` must be a mapping")
    told = json.loads(run("check", "--json", "--openapi", "api.yaml").stdout)
    assert (told["ok"], len(told["openapi"]["problems"])) == (False, 1)


def test_a_document_is_checked_even_if_the_configuration_is_invalid(here: Path) -> None:
    (here / "sidecar.yaml").write_text("lisen: x\n", encoding="utf-8")
    done = run("check", "--openapi", "api.yaml")
    assert done.exit_code == 2 and "api.yaml" not in done.stderr


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "a word": b"hello",
    "a null": b"null\n",
    "a list": b"[]",
    "random bytes": b"\x80\x81" + os.urandom(500),
    "nuls": b"\0" * 500,
    "utf-16": DOCUMENT.encode("utf-16"),
    "cut off": b'{"openapi": "3.0.0", "paths": {"/a": {"get"',
    "an alias bomb": b"a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1) if n else b"*a"] * 10)) for n in range(20))
    + b"openapi: 3.0.0\npaths: *a19\n",
    "a deep list": b"openapi: 3.0.0\npaths: " + b"[" * 50_000,
    "a long line": b"openapi: 3.0.0\npaths: {? /" + b"a" * 1_000_000 + b" : {get: {}}}\n",
    "a path twice": b"openapi: 3.0.0\npaths:\n  /a: {get: {}}\n  /a: {get: {}}\n",
    "another document": b"swaggerVersion: '1.2'\napis: []\n",
    "security of no kind": b"openapi: 3.0.0\nsecurity: {}\npaths: {/a: {get: {security: 5}}}\n",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_an_unusable_document_is_reported_with_locations(content: bytes, here: Path) -> None:
    (here / "broken").write_bytes(content)
    for words in (("routes", "from-openapi", "broken"), ("check", "--openapi", "broken")):
        done = run(*words)
        assert (done.exit_code, done.stdout) == (2, "")
        assert isinstance(done.exception, SystemExit)
        assert done.stderr and all(line.startswith("broken:") for line in done.stderr.splitlines())


@pytest.mark.parametrize(("name", "why"), [("none.yaml", "No such file or directory"), (".", "Is a directory")])
def test_a_path_that_is_not_a_file_is_reported(name: str, why: str) -> None:
    for words in (("routes", "from-openapi", name), ("check", "--openapi", name)):
        done = run(*words)
        assert (done.exit_code, done.stderr) == (2, f"{name}: cannot be read: {why}\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("check", "--base-path", "/v1"), "--base-path is for --openapi DOCUMENT"),
        (("check", "--openapi", "api.yaml", "--base-path", "v1"), "--base-path: write a path such as /v1"),
        (("routes", "from-openapi", "api.yaml", "--base-path", "/\x1b"), "--base-path: write a path such as /v1"),
        (("routes", "from-openapi"), "Missing argument 'FILE'"),
        (("routes", "from-swagger"), "No such command 'from-swagger'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(words: tuple[str, ...], expected: str) -> None:
    done = run(*words)
    assert done.exit_code == 2 and expected in done.stderr


def test_json_and_windows_line_ends_are_read_alike(here: Path) -> None:
    def draft_of(text: bytes) -> Any:
        (here / "api.yaml").write_bytes(text)
        return run("routes", "from-openapi", "api.yaml").stdout

    assert draft_of(b"\xef\xbb\xbf" + DOCUMENT.replace("\n", "\r\n").encode()) == DRAFT
