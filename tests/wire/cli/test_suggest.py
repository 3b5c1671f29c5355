"""`sidecar suggest`: from logs and counts to suggestions for review."""

import gzip
import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sidecar.cli.main import main
from sidecar.core.units import rfc3339
from sidecar.usage.recorder import DAY
from tests.harness.keys import IssuedKey, Keys
from tests.harness.past import make_old, write_use

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere/keys.db
scopes:
  streams:read: Read
  streams:write: {includes: [streams:read]}
  billing: Pay
quotas: {general: {limit: 1000, per: hour}}
routes:
  - GET /streams/**: {scopes: [streams:read], quotas: [general]}
  - POST /streams/**: {scopes: [streams:write]}
  - GET /billing/**: {scopes: [billing]}
  - GET /public/**: {public: true}
"""


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    config = tmp_path / "sidecar.yaml"
    config.write_text(CONFIG)
    return Keys(config, tmp_path / "keys.db")


@pytest.fixture
def old(keys: Keys) -> IssuedKey:
    """An old key with many scopes."""
    key = keys.issue("BI export", scopes=("streams:write", "billing"), tenant="acme")
    make_old(keys.store)
    return key


def suggest(keys: Keys, *arguments: str, stdin: bytes | None = None) -> Result:
    given = ["suggest", "-c", str(keys.config), "--store", keys.url, *arguments]
    return CliRunner(env={"COLUMNS": "80"}).invoke(main, given, input=stdin)


def told(keys: Keys, *arguments: str) -> Any:
    result = suggest(keys, "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def one(keys: Keys, *arguments: str) -> Any:
    [found] = told(keys, *arguments)["keys"]
    return found


def lines(key: IssuedKey, number: int = 30, **values: object) -> Iterator[str]:
    now = int(time.time() * 1_000_000)
    for place in range(number):
        line = {"time": rfc3339(now - 80 * DAY + place * DAY), "key_id": key.id, "method": "GET", "path": "/streams/1",
                "status": 200, "reason": None, **values}  # fmt: skip
        yield json.dumps(line)


def write_log(path: Path, *groups: Iterator[str]) -> str:
    path.write_text("".join(f"{line}\n" for group in groups for line in group))
    return str(path)


def test_a_table_shows_the_scopes_that_each_key_does_not_need(keys: Keys, old: IssuedKey, tmp_path: Path) -> None:
    refused = lines(old, 12, method="POST", path="/billing/1", status=403, reason="no_route")
    log = write_log(tmp_path / "access.jsonl", lines(old), refused)
    idle = keys.issue("idle", scopes=("billing",))
    make_old(keys.store)
    text = suggest(keys, "--from", log).stdout.splitlines()
    assert text[0].startswith("What the log holds from ")
    assert text[2].split() == ["ID", "NAME", "TENANT", "SCOPES", "USED", "REQUESTS", "SUGGESTION"]
    [row] = [line.split() for line in text if line.startswith(old.id)]
    assert row == [old.id, "BI", "export", "acme", "2", "1", "30", "narrow", "to", "streams:read"]
    assert any("used 1 in 29 days: streams:write; not used: billing; needs streams:read" in line for line in text)
    [unused] = [line for line in text if line.startswith(idle.id)]
    assert unused.endswith("review: never used")
    assert any(line.startswith("No request passed on GET /billing/** (") for line in text)
    assert "    quota general is 1,000, and at most 1 of it was ever used" in text


def test_printed_commands_are_accepted_by_keys_change_unchanged(keys: Keys, old: IssuedKey, tmp_path: Path) -> None:
    idle = keys.issue("idle", scopes=("billing",))
    make_old(keys.store)
    script = suggest(keys, "--from", write_log(tmp_path / "access.jsonl", lines(old)), "--commands").stdout
    [command] = [line for line in script.splitlines() if line and not line.startswith("#")]
    comments = [line for line in script.splitlines() if line.startswith("#")]
    assert any(f"{old.id} (BI export) of acme has 2 scopes" in line for line in comments)
    assert any(f"{idle.id} (idle) never used: does anybody need it?" in line for line in comments)
    changed = CliRunner().invoke(main, shlex.split(command)[1:])
    assert changed.exit_code == 0, changed.output
    assert keys.told("show", old.id)["scopes"] == ["streams:read"]
    assert one(keys, "--key", old.id, "--from", str(tmp_path / "access.jsonl"))["suggestion"] == "fits"


def test_the_counts_of_the_store_do_without_a_log(keys: Keys, old: IssuedKey) -> None:
    write_use(keys.url, old.id, {("GET /streams/**", ""): 60, ("POST /streams/**", "insufficient_scope"): 2})
    found = told(keys)
    [key] = found["keys"]
    assert (found["source"], key["suggestion"], key["needed"], key["requests"]) == (
        "usage",
        "narrow",
        ["streams:read"],
        60,
    )
    assert [route["name"] for route in found["routes"]] == ["POST /streams/**", "GET /billing/**"]
    options = ["-c", str(keys.config), "--store", keys.url]
    assert shlex.split(key["command"]) == ["sidecar", "keys", "change", *options, old.id, "--scope", "streams:read"]
    assert suggest(keys, "--strict").exit_code == 1
    assert one(keys, "--min-requests", "61")["suggestion"] == "too_early"
    assert one(keys, "--since", "1d")["suggestion"] == "unused"


def test_logs_may_be_packed_several_or_stdin(keys: Keys, old: IssuedKey, tmp_path: Path) -> None:
    plain = write_log(tmp_path / "a.jsonl", lines(old, 20))
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    assert one(keys, "--from", plain, "--from", str(packed))["requests"] == 40
    result = suggest(keys, "--json", "--from", "-", stdin=Path(plain).read_bytes())
    assert json.loads(result.stdout)["keys"][0]["requests"] == 20


def test_a_sample_gives_no_suggestions_unless_declared_complete(keys: Keys, old: IssuedKey, tmp_path: Path) -> None:
    log = write_log(tmp_path / "a.jsonl", lines(old, sampled=0.1, config="abc"))
    assert one(keys, "--from", log)["suggestion"] == "undecided"
    assert told(keys, "--from", log)["routes"] == []
    assert "The log is a sample" in suggest(keys, "--from", log).stdout
    assert one(keys, "--from", log, "--assume-complete")["suggestion"] == "narrow"


def test_without_a_store_a_log_with_scopes_is_enough(keys: Keys, tmp_path: Path) -> None:
    key = IssuedKey(id="key_1", text="", told={})
    log = write_log(tmp_path / "a.jsonl", lines(key, scopes=["streams:write", "billing"], config="abc"), lines(key, 3))
    found = told(keys, "--from", log)
    assert [(key["id"], key["needed"], key["requests"]) for key in found["keys"]] == [("key_1", ["streams:read"], 33)]
    old_lines = write_log(tmp_path / "b.jsonl", lines(key))
    assert told(keys, "--from", old_lines)["keys"] == []
    assert "30 requests not judged" in suggest(keys, "--from", old_lines).stdout


def test_keys_that_no_longer_work_are_left_out(keys: Keys, old: IssuedKey, tmp_path: Path) -> None:
    log = write_log(tmp_path / "a.jsonl", lines(old))
    keys.told("revoke", old.id, "--yes")
    assert told(keys, "--from", log)["keys"] == []


def test_a_new_key_is_too_early_to_say(keys: Keys) -> None:
    key = keys.issue("new", scopes=("billing",))
    assert one(keys, "--key", key.id)["suggestion"] == "too_early"
    assert "too early to say: issued" in suggest(keys).stdout


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        pytest.param(None, "cannot be read: No such file or directory", id="missing"),
        pytest.param(b"", "holds no request", id="empty"),
        pytest.param(b"\xef\xbb\xbf\r\n", "holds no request", id="only-a-mark"),
        pytest.param(b"\x00\xff" * 5000, "holds no request", id="binary"),
        pytest.param(b"{" * 100_000, "holds no request", id="one-huge-line"),
        pytest.param(b'{"method": 1}\n', "holds no request", id="wrong-types"),
        pytest.param(b"192.0.2.1 - - [x] \"GET / HTTP/1.1\" 200 -\n", "holds no request", id="another-format"),
        pytest.param(gzip.compress(b"{}")[:12], "is a gzip file that is cut off", id="cut-off"),
        pytest.param(b'{"method":"GET","path":"/","status":200,"time":"2001-01-01T00:00:00Z"}\n',
                     "no request is later than", id="too-old"),
    ],
)  # fmt: skip
def test_a_log_that_cannot_be_used_is_one_line_and_exits_with_2(
    keys: Keys, old: IssuedKey, tmp_path: Path, content: bytes | None, wrong: str
) -> None:
    log = tmp_path / "access.jsonl"
    if content is not None:
        log.write_bytes(content)
    result = suggest(keys, "--from", str(log))
    assert result.exit_code == 2 and result.stdout == ""
    assert wrong in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbf%s\r\n", b'{"method":"GET","path":"/","status":200,"time":5}\nnonsense\n%s\n', b"%s"],
    ids=["BOM-and-CRLF", "other-lines", "no-end-of-line"],
)
def test_odd_lines_among_requests_are_skipped(keys: Keys, old: IssuedKey, tmp_path: Path, content: bytes) -> None:
    log = tmp_path / "access.jsonl"
    log.write_bytes(content % next(lines(old)).encode())
    assert one(keys, "--from", str(log))["requests"] == 1


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (("--json", "--commands"), "contradict each other"),
        (("--from", "-", "--key", "-"), "only once"),
        (("--from", "/"), "cannot be read"),
        (("--since", "soon"), "neither a duration"),
        (("--since", "2999-01-01"), "in the future"),
        (("--min-requests", "0"), "whole number"),
    ],
)
def test_options_that_make_no_sense_exit_with_2(
    keys: Keys, old: IssuedKey, arguments: tuple[str, ...], wrong: str
) -> None:
    result = suggest(keys, *arguments)
    assert result.exit_code == 2 and wrong in result.stderr


@pytest.mark.parametrize("since", ["999999999d", "1001-01-01", "0s"])
def test_since_accepts_any_time(keys: Keys, old: IssuedKey, tmp_path: Path, since: str) -> None:
    log = write_log(
        tmp_path / "a.jsonl", lines(old), lines(old, 1, time="9999-12-31T23:59:59Z"), lines(old, 1, time="x")
    )
    assert suggest(keys, "--since", since).exit_code == 0
    assert suggest(keys, "--since", since, "--from", log).exit_code == 0


def test_an_unknown_key_is_reported_as_unknown(keys: Keys, old: IssuedKey) -> None:
    result = suggest(keys, "--key", "key_unknown")
    assert (result.exit_code, result.stdout) == (1, "") and "no key 'key_unknown'" in result.stderr


def test_keys_of_a_file_are_changed_in_the_file(keys: Keys, tmp_path: Path) -> None:
    record = keys.told("issue", "--offline", "--name", "CI", "--scope", "streams:write")["record"]
    records = tmp_path / "keys.jsonl"
    records.write_text(json.dumps({**record, "created_at": "2020-01-01T00:00:00Z"}))
    log = write_log(tmp_path / "a.jsonl", lines(IssuedKey(id=record["id"], text="", told={})))
    in_file = Keys(keys.config, f"file://{records}")
    script = suggest(in_file, "--from", log, "--commands").stdout
    assert f"change its scopes in {records}: streams:read" in script
    assert all(line.startswith("#") or not line for line in script.splitlines())
    counted = suggest(in_file)
    assert counted.exit_code == 2 and "is not stored: give --from FILE" in counted.stderr
