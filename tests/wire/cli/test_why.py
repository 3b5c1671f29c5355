"""`sidecar why`: past decisions from the access log, whatever else the log contains."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sidecar.cli.main import main
from tests.harness.running import StartSidecar

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
ops: 127.0.0.1:0
keys: {environments: {live: hv_live_}}
scopes: {read: Read, write: Write}
quotas: {few: {limit: 1, per: month}}
routes:
- GET /items/**: {scopes: [read], quotas: [few]}
- POST /items/**: {scopes: [write]}
"""
REFUSED = {
    "time": "2026-03-01T12:00:00.000Z", "request_id": "r1", "key_id": "key_1", "key_prefix": "hv_live_abcd",
    "tenant": None, "environment": "live", "scopes": ["read"], "credential": "key", "route": "POST /items/**",
    "method": "POST", "path": "/items/7", "status": 403, "reason": "insufficient_scope", "client_address": "192.0.2.1",
    "config": "0123456789ab",
}  # fmt: skip


class Asked:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "sidecar.yaml"
        self.file.write_text(CONFIG, encoding="utf-8")

    def log(self, *lines: dict[str, Any] | bytes, name: str = "access.jsonl") -> str:
        text = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n"
        (self.folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        return str(self.folder / name)

    def why(self, *words: str, stdin: bytes = b"") -> Result:
        return CliRunner().invoke(main, ["why", "-c", str(self.file), *words], input=stdin)


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


def test_a_logged_request_is_explained(start_sidecar: StartSidecar, asked: Asked) -> None:
    sidecar = start_sidecar(CONFIG)
    key = sidecar.keys.issue(scopes=("read",))
    for request_id in ("first", "second"):
        sidecar.ask("GET", "/items/7?token=hidden", [("X-Request-Id", request_id)], key=key)
    lines = [sidecar.logged(lambda line, name=name: line["request_id"] == name) for name in ("first", "second")]
    assert "quota" not in lines[0] and (lines[1]["quota"], lines[1]["limit"]) == ("few", 1)
    log = asked.log(*lines)
    told = asked.why("second", "--log", log).output
    assert "used up       few of 1; free again after" in told
    assert "Today few has a limit of 1" not in told and "has the same limit of few: what is left of it" in told
    assert f"key           {key.id}  hv_live_" in told and "hidden" not in told and key.text not in told
    asked.file.write_text(CONFIG.replace("limit: 1,", "limit: 5,"), encoding="utf-8")
    told = asked.why("second", "--log", log).output
    assert "today's is " in told and "Today few has a limit of 5 for this key, in place of 1" in told


def test_every_request_with_the_id_is_shown_from_packed_logs_and_stdin_alike(asked: Asked) -> None:
    old = asked.log(REFUSED, {**REFUSED, "request_id": "r2"}, name="access.jsonl.1.gz")
    new = json.dumps({**REFUSED, "path": "/items/8", "client_address": "192.0.2.9"}).encode()
    done = asked.why("r1", "--log", old, "--log", "-", stdin=new)
    assert done.exit_code == 0
    assert [line for line in done.output.splitlines() if line.startswith("asked")] == [
        "asked         POST /items/7",
        "asked         POST /items/8",
    ]
    assert "2 requests had this id: clients may send the same one again." in done.output
    told = json.loads(asked.why("r1", "--log", old, "--log", "-", "--json", stdin=new).output)
    assert [one["path"] for one in told] == ["/items/7", "/items/8"]
    assert [(one["otherwise"], one["verdict"]) for one in told] == [
        (False, "Today's configuration decides the same.")
    ] * 2


def test_a_request_missing_from_the_log_is_reported_with_suggestions(asked: Asked) -> None:
    log = asked.log(REFUSED, b"Traceback (most recent call last):")
    done = asked.why("r9", "--log", log)
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"no request 'r9' among 1 request in {log}: give older logs" in done.stderr
    done = asked.why("r9", "--log", log, "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (1, [])


HOSTILE = {
    "escapes": {"path": "/\x1b]0;title\x07\x1b[2J", "method": "\x1b[31mGET", "client_address": "\r\nanswered  200"},
    "a line of one's own": {"route": "GET /x\nanswered      200", "key_id": "\x9b2J", "reason": "\u202enothing"},
    "bytes that are no text": {"path": "/\\udcff\ud800", "scopes": ["\ud800", "\n"]},
    "a reason that is none": {"reason": "nothing", "config": "\x1b", "limit": 10**30, "quota": "\x1b"},
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_no_line_of_a_log_reaches_the_terminal_as_more_than_text(
    asked: Asked, hostile: dict[str, Any], form: list[str]
) -> None:
    done = asked.why("r1", "--log", asked.log({**REFUSED, **hostile}, REFUSED), *form)
    assert done.exit_code == 0, done.output
    assert all(char == "\n" or char.isprintable() for char in done.stdout)
    if not form:
        assert [line for line in done.stdout.splitlines() if line.startswith("answered")][-1:] == [
            "answered      403: insufficient_scope"
        ]


WRONG = {
    "an empty file": (b"", 2, "no line is of an access log in JSON"),
    "another format": (
        b'192.0.2.1 - - [01/Mar/2026] "GET / HTTP/1.1" 200 5\n',
        2,
        "no line is of an access log in JSON",
    ),
    "no text": (bytes(range(256)) * 40, 2, "no line is of an access log in JSON"),
    "a log that is cut off": (gzip.compress(b"x" * 9000)[:30], 2, "is a gzip file that is cut off"),
    "another packing": (b"\x28\xb5\x2f\xfd" + b"x" * 90, 2, "is packed with zstd"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_is_not_a_log_is_named(asked: Asked, wrong: str) -> None:
    content, status, expected = WRONG[wrong]
    (asked.folder / "log").write_bytes(content)
    done = asked.why("r1", "--log", str(asked.folder / "log"))
    assert (done.exit_code, expected in done.stderr) == (status, True), done.stderr


def test_wrong_arguments_are_one_line_of_error(asked: Asked) -> None:
    key = "hv_live_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T0abc"
    for words, status, expected in (
        (["", "--log", "-"], 2, "the id is empty"),
        (["r1"], 2, "no access log is named: give --log FILE, or --log - for stdin"),
        (["r1", "--log", "-", "--log", "-"], 2, "stdin can be read only once"),
        (["r1", "--log", str(asked.folder)], 2, "cannot be read"),
        (["r1", "--log", str(asked.folder / "none")], 2, "No such file"),
        ([key, "--log", "-"], 2, "looks like an API key"),
        (["\x1b[2J", "--log", "-"], 2, "unprintable"),
    ):
        done = asked.why(*words)
        assert done.exit_code == status, words
        assert expected in done.stderr and key not in done.stderr and len(done.stderr.splitlines()) == 1
