"""A command's output: a closed reader, a full disk, and the targets of `-o`."""

import asyncio
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete

from sidecar.cli.main import interruptible, main
from sidecar.cli.options import OneOf, WholeNumber
from tests.harness import forks
from tests.harness.keys import run_cli
from tests.harness.processes import clean_environ
from tests.wire.cli.doctoring import Place

READ = [
    ["keys", "list"],
    ["keys", "list", "--json"],
    ["keys", "export"],
    ["keys", "export", "--format", "csv"],
    ["keys", "due", "--within", "60d"],
    ["audit"],
    ["audit", "verify"],
    ["doctor"],
    ["explain", "GET", "/v1/x"],
]
PLAIN = [words for words in READ if words == ["keys", "list"] or words[:2] == ["keys", "export"]]


def started(place: Place, words: list[str], stdout: int) -> "subprocess.Popen[str]":
    """Some are started as by a shell, including everything that Python does at exit; the others are forked."""
    config = ["-c", str(place.keys.config)]
    line = [sys.executable, "-m", "sidecar"] if words in PLAIN else forks.command()
    environ, passed = clean_environ(SIDECAR_STORE=place.keys.url), [forks.server().fileno()]
    return subprocess.Popen(
        [*line, *words, *config], stdout=stdout, stderr=subprocess.PIPE, text=True, env=environ, pass_fds=passed
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    try:
        _, stderr = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        raise
    return process.returncode, stderr


@pytest.mark.parametrize("words", READ, ids=" ".join)
def test_a_command_whose_reader_is_gone_ends_at_once_and_quietly(place: Place, words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    process = started(place, words, write)
    os.close(write)
    assert ended(process) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("words", [READ[0], READ[2], READ[7]], ids=" ".join)
def test_a_command_on_a_full_disk_says_so_in_one_line(place: Place, words: list[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    process = started(place, words, full)
    os.close(full)
    assert ended(process) == (1, "Error: cannot write the output: No space left on device\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("verb", ["issue", "rotate"])
def test_a_key_that_a_full_disk_kept_from_being_printed_is_named(place: Place, verb: str) -> None:
    words = ["--name", "lost"] if verb == "issue" else [place.keys.issue().id]
    full = os.open("/dev/full", os.O_WRONLY)
    process = started(place, ["keys", verb, *words], full)
    os.close(full)
    status, told = ended(process)
    assert (status, told.count("\n")) == (1, 1)
    [key_id] = re.findall(r"No space left on device; (key_\w{20}) was issued, but could not be shown", told)
    assert place.keys.run("show", key_id).exit_code == 0


def test_an_output_without_a_name_is_reported(place: Place) -> None:
    result = place.keys.run("export", "-o", "")
    assert (result.exit_code, result.stderr) == (2, "Error: the output has no name: name a file, or - for stdout\n")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("explian", "explain"),
        ("issue", "keys issue"),
        ("rotat", "keys rotate"),
        ("backup", "store backup"),
        ("verify", "audit verify"),
        ("create", "keys issue"),
        ("ls", "keys list"),
        ("start", "serve"),
        ("lint", "check"),
        ("help", "--help"),
        ("version", "--version"),
    ],
)
def test_an_unknown_command_gets_a_suggestion_ready_to_type(typed: str, meant: str) -> None:
    result = run_cli(typed)
    assert result.exit_code == 2
    assert result.stderr.endswith(f"Error: No such command {typed!r}. Did you mean {meant!r}?\n")


@pytest.mark.parametrize(("typed", "meant"), [("delete", "revoke"), ("add", "issue"), ("ls", "list"), ("get", "show")])
def test_a_command_of_keys_is_found_by_its_usual_name(typed: str, meant: str) -> None:
    result = run_cli("keys", typed)
    assert result.exit_code == 2
    assert result.stderr.endswith(f"Error: No such command {typed!r}. Did you mean {meant!r}?\n")


@pytest.fixture
def exported(place: Place) -> Callable[[str], None]:
    def export(output: str) -> None:
        result = place.keys.run("export", "-o", output)
        assert (result.exit_code, result.stderr) == (0, "")

    return export


def test_export_replaces_what_a_link_leads_to_and_keeps_the_link(
    exported: Callable[[str], None], tmp_path: Path
) -> None:
    target, link, dangling = (tmp_path / name for name in ("real.jsonl", "link.jsonl", "dangling.jsonl"))
    target.write_text("old")
    link.symlink_to(target)
    dangling.symlink_to("new.jsonl")
    exported(str(link))
    exported(str(dangling))
    assert link.is_symlink()
    assert dangling.is_symlink()
    assert '"id"' in target.read_text()
    assert '"id"' in (tmp_path / "new.jsonl").read_text()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_export_leaves_other_files_alone(exported: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.part").write_text("mine")
    exported(str(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl.part").read_text() == "mine"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".sidecar-")]


def test_export_writes_to_a_fifo_and_leaves_it_one(place: Place, tmp_path: Path) -> None:
    fifo, read = tmp_path / "fifo", list[str]()
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()))
    reader.start()
    assert place.keys.run("export", "-o", str(fifo)).exit_code == 0
    reader.join()
    assert '"id"' in read[0]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_export_to_a_device_does_not_replace_it(exported: Callable[[str], None], tmp_path: Path) -> None:
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    exported(str(link))
    assert stat.S_ISCHR(link.stat().st_mode)


def test_a_dash_is_stdout(place: Place) -> None:
    assert place.keys.run("export", "-o", "-").stdout == place.keys.run("export").stdout != ""


def test_export_says_that_its_disk_is_full(place: Place) -> None:
    result = place.keys.run("export", "-o", "/dev/full")
    assert (result.exit_code, result.stderr) == (1, "Error: /dev/full: No space left on device\n")


def test_export_into_a_folder_that_is_not_there_is_one_line(place: Place) -> None:
    result = place.keys.run("export", "-o", "/nowhere/keys.csv")
    assert (result.exit_code, result.stderr) == (2, "Error: /nowhere/keys.csv: No such file or directory\n")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("keys list --limit many", "--limit: write a whole number of 1 or more, not 'many'"),
        ("keys list --limit 0", "--limit: write a whole number of 1 or more, not '0'"),
        ("audit --limit 1e3", "--limit: write a whole number from 1 to 100,000, not '1e3'"),
        ("keys usage key_1 --days 4000", "--days: write a whole number from 1 to 3,660, not '4000'"),
        (
            "keys list --status activ",
            "--status: write one of active, retiring, disabled, revoked, expired, retired, not 'activ'",
        ),
        ("diff a b --json --markdown", "--json and --markdown contradict each other: give only one of them"),
        ("keys export --format xml", "--format: write one of jsonl, csv, not 'xml'"),
        ("admin token --rights all", "--rights: write one of read, write, not 'all'"),
        (
            "keys issue --name CI --expires soon",
            "--expires: 'soon' is neither a duration such as 90d nor a date such as 2027-01-31",
        ),
        ("keys issue --name CI --quota a", "--quota: 'a' has no =: write NAME=VALUE"),
    ],
)
def test_an_invalid_value_is_reported_in_one_line_with_the_expected_form(line: str, told: str) -> None:
    done = run_cli(*line.split())
    assert (done.exit_code, done.stderr) == (2, f"Error: {told}\n")


@pytest.mark.parametrize(
    "line",
    [
        "serve -c",
        "check",
        "check -c",
        "doctor -c",
        "explain -c",
        "audit -c",
        "drain --socket",
        "keys list -c",
        "keys import",
        "keys export -o",
    ],
)
def test_the_shell_completes_names_of_files(line: str) -> None:
    completed = BashComplete(main, {}, "sidecar", "_SIDECAR_COMPLETE").get_completions(line.split(), "si")
    assert {(one.type, one.value) for one in completed} == {("file", "si")}


def test_the_shell_completes_commands_options_and_values() -> None:
    def completed(line: str, begun: str) -> list[str]:
        found = BashComplete(main, {}, "sidecar", "_SIDECAR_COMPLETE").get_completions(line.split(), begun)
        return [one.value for one in found]

    assert completed("", "ke") == ["keys"]
    assert completed("keys", "rev") == ["revoke"]
    assert "--status" in completed("keys list", "--st")
    assert completed("keys list --status", "re") == ["retiring", "revoked", "retired"]


def commands_of(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands_of(found)


def test_every_option_with_a_number_or_a_choice_says_what_to_write() -> None:
    """The library's own message says only "is not a valid integer range"."""
    types = {type(option.type) for command in commands_of(main) for option in command.params}
    plain = {type(click.STRING), type(click.BOOL), type(click.UNPROCESSED), click.Path}
    assert types - plain == {OneOf, WholeNumber}


@pytest.mark.parametrize("words", [[], ["keys"], ["store"], ["admin"]], ids=" ".join)
def test_a_group_without_a_command_shows_its_help_and_no_error(words: list[str]) -> None:
    done = run_cli(*words)
    assert done.exit_code == 2
    assert done.output.startswith(f"Usage: {' '.join(['main', *words])} [OPTIONS] COMMAND")
    assert done.output.count("Usage:") == 1
    assert "Error:" not in done.output


ODD: str = "n\x07\u202e"
SHOWN = [
    ["check", f"{ODD}.yaml"],
    ["check", f"{ODD}.yaml", "--strict"],
    ["check", f"{ODD}.yaml", "--openapi", f"{ODD}.json"],
    ["test", f"{ODD}.yml", "--coverage-minimum", "100"],
    ["test", f"{ODD}.yml", "--junit", f"missing/{ODD}"],
    ["diff", f"{ODD}.yaml", f"{ODD}.yaml", "--replay", "/dev/zero"],
    ["suggest", "-c", f"{ODD}.yaml", "--from", ODD],
    ["suggest", "-c", f"{ODD}.yaml", "--from", f"{ODD}.json"],
    ["why", "r1", "-c", f"{ODD}.yaml", "--log", ODD],
    ["keys", "list", "--store", f"sqlite:///{ODD}"],
]


@pytest.mark.parametrize("words", SHOWN, ids=lambda words: " ".join(words).replace(ODD, "odd"))
def test_names_of_files_send_nothing_to_the_terminal(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(f"{ODD}.yaml").write_text(
        "listen: 127.0.0.1:0\nupstream: http://127.0.0.1:1\nstore: sqlite:none.db\nkeys: {environments: {live: ex_}}\n"
        "scopes: {read: Read, idle: Idle}\nroutes: [GET /a: {scopes: [read]}]\nmode: observe\n",
        encoding="utf-8",
    )
    Path(f"{ODD}.yml").write_text(f'config: "{ODD[:1]}\\a\\u202e.yaml"\ncases: [GET /a: missing_credential]\n', "utf-8")
    Path(f"{ODD}.json").write_text('{"openapi": "3.0.0", "info": {}, "paths": {"/a": {"get": {}}}}\n', "utf-8")
    done = run_cli(*words)
    assert done.output.replace("\n", "").isprintable(), done.output
    assert "n??" in done.output or "/dev/zero is a device" in done.output


def test_ctrl_c_ends_a_command_at_once_that_waits_within_a_loop() -> None:
    went_on = False

    async def wait() -> None:
        nonlocal went_on
        os.kill(os.getpid(), signal.SIGINT)
        went_on = True

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interruptible(), pytest.raises(KeyboardInterrupt):
            asyncio.run(wait())
        assert not went_on
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
