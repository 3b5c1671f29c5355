"""README and the guide are correct."""

import re

import click
import pytest
from click.testing import CliRunner

from sidecar.cli.main import main
from sidecar.core.errors import Reason, status_of
from tests.harness.pages import GUIDE, PAGES, README, blocks, read
from tests.harness.processes import ROOT

DOCUMENTS = "\n".join(read(page) for page in PAGES)
SHELL_LINES = [line for block in blocks(README, "sh") for line in block.text.splitlines()]
MOST_LINES = 150
MOST_PICTURE_BYTES = 200_000


def commands() -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    pending: list[tuple[str, click.Command]] = [("sidecar", main)]
    while pending:
        name, command = pending.pop()
        if isinstance(command, click.Group):
            context = click.Context(command)
            children = [(child, command.get_command(context, child)) for child in command.list_commands(context)]
            pending += [(f"{name} {child}", found) for child, found in children if found is not None]
        else:
            found.append((name, command))
    return found


def test_readme_is_one_page_with_a_small_picture() -> None:
    assert len(read(README).splitlines()) <= MOST_LINES
    assert (GUIDE / "admin.png").stat().st_size < MOST_PICTURE_BYTES


def test_readme_has_exactly_two_set_up_commands() -> None:
    assert len(SHELL_LINES) == 2
    assert SHELL_LINES[0].endswith("sidecar demo")
    assert SHELL_LINES[1].endswith("python -m pytest")


def test_ci_runs_the_very_test_command_of_the_readme() -> None:
    assert SHELL_LINES[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_documents_name_every_command_and_no_other() -> None:
    named = {match.strip() for match in re.findall(r"`(sidecar(?: [a-z]+(?:-[a-z]+)*)+)", DOCUMENTS)}
    known = {name for name, _ in commands()}
    assert known <= named
    assert all(any(name.startswith(one) or one.startswith(name) for one in known) for name in named)


@pytest.mark.parametrize(("name", "command"), commands(), ids=[name for name, _ in commands()])
def test_every_help_shows_an_example_and_every_option(name: str, command: click.Command) -> None:
    shown = CliRunner().invoke(main, [*name.split()[1:], "--help"])
    assert shown.exit_code == 0
    assert f"{name} " in shown.output or f"{name}\n" in shown.output
    assert "Example:" in shown.output
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} says nothing of itself"
            assert parameter.opts[-1] in shown.output


@pytest.mark.parametrize("group", [[], ["keys"], ["store"], ["admin"], ["audit"]], ids=str)
def test_no_command_is_cut_short_in_the_list_of_its_group(group: list[str]) -> None:
    listed = CliRunner().invoke(main, [*group, "--help"], terminal_width=80).output.partition("Commands:")[2]
    assert listed
    assert "..." not in listed


def test_the_documents_name_the_options_of_serve_and_issue() -> None:
    rows = {
        match[1]: match[0] for match in re.finditer(r"^\| `(sidecar [a-z]+(?: [a-z]+)?).*$", DOCUMENTS, re.MULTILINE)
    }
    for name, command in commands():
        if name in ("sidecar serve", "sidecar keys issue", "sidecar keys list"):
            for parameter in command.params:
                long = [option for option in parameter.opts if option.startswith("--") and option != "--config"]
                assert all(option in rows[name] for option in long), f"{name} {long}"


def test_the_documents_name_every_reason_under_its_status() -> None:
    rows = {
        reason: row
        for row in DOCUMENTS.splitlines()
        if re.match(r"\| \d", row)
        for reason in re.findall(r"`(\w+)`", row)
    }
    for reason in Reason:
        assert str(status_of(reason)) in rows[reason], reason
