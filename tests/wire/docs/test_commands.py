"""A newcomer follows README, then opens a page of the guide and types its commands, in the same shell."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.pages import GUIDE, README, blocks
from tests.wire.docs.terminal import Terminal

TRIED = [page for page in sorted(GUIDE.glob("*.md")) if blocks(page, "bash")]
DESTRUCTIVE = [page for page in TRIED if page.stem in ("keys", "operations")]
"""Pages whose commands revoke keys and stop the sidecar."""
HARMLESS = [page for page in TRIED if page not in DESTRUCTIVE]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """After README's first five minutes."""
    with Terminal(tmp_path) as terminal:
        terminal.set_up()
        yield terminal


@pytest.fixture(scope="module")
def shared_terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    with Terminal(tmp_path_factory.mktemp("docs")) as terminal:
        terminal.set_up()
        yield terminal


def test_the_set_up_of_the_readme_works_unchanged(shared_terminal: Terminal) -> None:
    told = shared_terminal.run('echo "$KEY" | sidecar explain GET /v1/streams/1 --key -')
    assert "allow" in told


@pytest.mark.parametrize("page", HARMLESS, ids=[page.stem for page in HARMLESS])
def test_every_command_of_the_guide_works_unchanged(shared_terminal: Terminal, page: Path) -> None:
    type_all(page, shared_terminal)


@pytest.mark.parametrize("page", DESTRUCTIVE, ids=[page.stem for page in DESTRUCTIVE])
def test_every_destructive_command_of_the_guide_works_unchanged(terminal: Terminal, page: Path) -> None:
    type_all(page, terminal)


def type_all(page: Path, terminal: Terminal) -> None:
    for block in blocks(page, "bash"):
        terminal.run(block.text)


def test_commands_are_in_blocks_that_a_test_checks() -> None:
    languages = {block.language for page in (README, *TRIED) for block in blocks(page, "", "shell", "sh", "zsh")}
    assert languages <= {"sh"}
    assert all(not blocks(page, "sh") for page in TRIED)
