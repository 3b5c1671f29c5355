"""`sidecar diff`: what changes between two files, and for the requests of a log."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sidecar.cli.main import main
from tests.harness.running import StartSidecar

OLD = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
keys: {environments: {live: ex_}}
scopes: {read: Read, write: Write}
routes:
- GET /items/**: {scopes: [read]}
"""
OPENED = OLD + "- GET /open: {public: true}\n"
CLOSED = OLD.replace("scopes: [read]", "all_scopes: [read, write]")
RENAMED = OLD.replace("/items/**: {scopes: [read]}", "/items/**: {all_scopes: [read]}")
RETIMED = OLD + "limits: {body: 10B}\n"
REQUEST = {
    "time": "2026-03-01T12:00:00.000Z", "request_id": "r1", "key_id": "key_1", "tenant": "acme", "scopes": ["read"],
    "credential": "key", "route": "GET /items/**", "method": "GET", "path": "/items/1", "status": 200, "reason": None,
    "config": "0123456789ab",
}  # fmt: skip


class Files:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, content: str | bytes) -> str:
        file = self.folder / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(file)

    def diff(self, old: str, new: str, *options: str, stdin: bytes = b"") -> Result:
        words = ["diff", self.write("old.yaml", old), self.write("new.yaml", new), *options]
        return CliRunner().invoke(main, words, input=stdin, catch_exceptions=False)

    def replay(self, log: bytes, *options: str, new: str = CLOSED) -> Result:
        return self.diff(OLD, new, "--replay", self.write("access.log", log), *options)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def lines(*requests: dict[str, Any]) -> bytes:
    return b"".join(json.dumps({**REQUEST, **request}).encode() + b"\n" for request in requests)


@pytest.mark.parametrize(
    ("new", "options", "status"),
    [
        (OLD, (), 0),
        (RENAMED, ("--fail-on", "any"), 0),
        (OPENED, (), 1),
        (CLOSED, (), 1),
        (RETIMED, (), 0),
        (RETIMED, ("--fail-on", "any"), 1),
        (CLOSED, ("--fail-on", "opens"), 0),
        (OPENED, ("--fail-on", "opens"), 1),
        (OPENED, ("--fail-on", "closes"), 0),
        (CLOSED, ("--fail-on", "closes", "--fail-on", "opens"), 1),
        (OPENED, ("--fail-on", "nothing"), 0),
    ],
)
def test_the_exit_status_follows_the_options(files: Files, new: str, options: tuple[str, ...], status: int) -> None:
    assert files.diff(OLD, new, *options).exit_code == status


def test_a_change_is_reported_with_both_locations(files: Files) -> None:
    output = files.diff(OLD, CLOSED).output
    assert "0 open, 1 closes, 0 other changes" in output
    assert "closes   GET /items/**" in output
    assert f"{files.folder}/old.yaml:7 → {files.folder}/new.yaml:7" in output
    assert "may pass: read → read and write" in output
    assert "no change" in files.diff(OLD, RENAMED).output


def test_json_has_it_all(files: Files) -> None:
    told = json.loads(files.replay(lines({}, {"path": "/other", "status": 403, "reason": "no_route"}), "--json").output)
    assert told["summary"] == {"opens": 0, "closes": 1, "other": 0}
    [change] = told["changes"]
    assert (change["section"], change["what"], change["effects"]) == ("routes", "GET /items/**", ["closes"])
    replay = told["replay"]
    assert replay["judged"] == {"lines": 2, "requests": 2}
    assert replay["changed"]["closed"] == {"lines": 1, "requests": 1}
    [group] = replay["groups"]
    assert (group["key_id"], group["new"]["reason"]) == ("key_1", "insufficient_scope")
    assert group["examples"][0] == {
        "time": REQUEST["time"], "request_id": "r1", "method": "GET", "path": "/items/1",
    }  # fmt: skip
    assert replay["other_configuration_lines"] == 2
    assert json.loads(files.diff(OLD, OLD, "--json").output)["replay"] is None


@pytest.mark.parametrize("log", ["plain", "gzip", "stdin"])
def test_a_log_is_read_plain_packed_and_from_stdin(files: Files, log: str) -> None:
    content = lines({}, {"sampled": 0.1})
    if log == "stdin":
        done = files.diff(OLD, CLOSED, "--replay", "-", stdin=content)
    else:
        done = files.replay(gzip.compress(content) if log == "gzip" else content)
    assert "about 11 requests judged, about 11 closed" in done.output
    assert "scaled up from the 2 lines of a sample" in done.output
    assert done.exit_code == 1


def test_markdown_escapes_anything_from_a_log(files: Files) -> None:
    hostile = {"path": "/items/`|@team<img>", "key_id": "k|`<b>\u202e", "tenant": "\x1b[31m"}
    done = files.replay(lines(hostile), "--markdown")
    [row] = [line for line in done.output.splitlines() if line.startswith("| **closed**")]
    assert row.count("|") - row.count("\\|") == 6
    assert "`` GET /items/`\\|@team<img> ``" in row
    assert "\x1b" not in done.output and "\u202e" not in done.output


def test_requests_that_were_not_judged_are_reported(files: Files) -> None:
    log = lines({"path": "/items/[redacted]"}, {"status": 401, "reason": "revoked_key"}, {"scopes": [], "config": None})
    output = files.replay(b"Starting\n" + log).output
    assert "Not requests: 1 line, the first is line 1." in output
    assert "1 their path is redacted" in output and "1 refused for a wrong key" in output
    assert "1 logged by an older version, without scopes" in output
    assert "Quotas, headers and bodies are not judged." in output


def test_a_damaged_log_is_judged_up_to_the_damage_and_fails(files: Files) -> None:
    packed = gzip.compress(lines(*({"request_id": f"{number * 7919:x}"} for number in range(5000))))
    done = files.replay(packed[:-100], "--fail-on", "nothing")
    assert done.exit_code == 2
    assert "requests judged" in done.output and "cut off" in done.output


BAD_LOGS = {
    "another format": b'192.0.2.1 - - [01/Mar/2026:12:00:00 +0000] "GET / HTTP/1.1" 200 - "-" "-"\n',
    "binary": bytes(range(256)) * 100,
    "one endless line": b"x" * 1_000_000,
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(100),
    "an empty head of gzip": b"\x1f\x8b",
}


@pytest.mark.parametrize("log", BAD_LOGS.values(), ids=BAD_LOGS)
def test_a_file_that_is_not_a_log_is_one_line_of_error(files: Files, log: bytes) -> None:
    done = files.replay(log)
    assert done.exit_code == 2
    assert done.output.startswith("Error: ") and done.output.count("\n") == 1


def test_an_empty_log_changes_nothing(files: Files) -> None:
    done = files.replay(b"", new=OLD)
    assert done.exit_code == 0 and "0 requests judged" in done.output


@pytest.mark.parametrize("path", ["", "missing", "."])
def test_a_log_that_cannot_be_read_is_one_line(files: Files, path: str) -> None:
    done = files.diff(OLD, OLD, "--replay", str(files.folder / path) if path else "")
    assert done.exit_code == 2
    assert "cannot be read" in done.output and done.output.count("\n") == 1


BAD_FILES = {
    "empty": b"",
    "binary": bytes(range(256)),
    "a list": b"- 1\n",
    "an unknown key": (OLD + "rotues: []\n").encode(),
    "bombs": b"a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b, *c]\n",
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_problems_of_both_files_are_reported_at_once(files: Files, content: bytes) -> None:
    bad, worse = files.write("bad.yaml", content), str(files.folder / "missing.yaml")
    done = CliRunner().invoke(main, ["diff", bad, worse], catch_exceptions=False)
    assert done.exit_code == 2
    assert "bad.yaml" in done.output and "missing.yaml: cannot be read" in done.output


def test_windows_line_ends_and_a_bom_do_not_matter(files: Files) -> None:
    assert files.diff(OLD, "\ufeff" + OLD.replace("\n", "\r\n")).exit_code == 0


def test_a_logged_request_is_judged_as_it_was(start_sidecar: StartSidecar, files: Files) -> None:
    sidecar = start_sidecar(OLD + "access_log: json\n")
    key, other = sidecar.keys.issue(scopes=("read",)), sidecar.keys.issue(scopes=("write",))
    for path, credential in (("/items/1", key), ("/items/1", other), ("/items/1", None), ("/none", key)):
        sidecar.ask("GET", path, key=credential)
    assert sidecar.stop() == 0
    log = "\n".join(sidecar.process.stdout.all()).encode()
    replay = json.loads(files.replay(log, "--json").output)["replay"]
    assert (replay["judged"]["lines"], replay["not_judged"], replay["disagreements"]) == (4, {}, [])
    [group] = replay["groups"]
    assert (group["kind"], group["key_id"], group["lines"]) == ("closed", key.id, 1)
