"""A newcomer follows README, then opens a page of the guide and types what stands there, in the same shell."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.pages import GUIDE, README, blocks
from tests.wire.docs.terminal import Terminal

TRIED = [page for page in sorted(GUIDE.glob("*.md")) if blocks(page, "bash")]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with Terminal(tmp_path) as terminal:
        yield terminal


def test_the_set_up_of_the_readme_works_as_it_stands(terminal: Terminal) -> None:
    terminal.set_up()
    told = terminal.run('echo "$KEY" | sidecar explain GET /v1/streams/1 --key -')
    assert "allow" in told


@pytest.mark.parametrize("page", TRIED, ids=[page.stem for page in TRIED])
def test_every_command_of_the_guide_works_as_it_stands(terminal: Terminal, page: Path) -> None:
    terminal.set_up()
    for block in blocks(page, "bash"):
        terminal.run(block.text)


def test_commands_stand_in_blocks_that_a_test_looks_at() -> None:
    languages = {block.language for page in (README, *TRIED) for block in blocks(page, "", "shell", "sh", "zsh")}
    assert languages <= {"sh"}
    assert all(not blocks(page, "sh") for page in TRIED)
