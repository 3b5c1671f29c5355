"""README and the guide, as tests read them: pages, their code blocks, headings and links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from tests.harness.processes import ROOT

README = ROOT / "README.md"
GUIDE = ROOT / "deploy" / "guide"
PAGES = (README, *sorted(GUIDE.glob("*.md")))
"""What is written for users."""

_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)
_LINK = re.compile(r"\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block. language: `bash` is run by a test, `console` needs more than this machine, `yaml` must load as a
    configuration, `yml` as policy tests.
    """

    language: str
    text: str


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[Block]:
    """The page's code blocks in these languages, in order, without the indent of the list that they stand in."""
    found = (Block(language=match[2], text=dedent(match[3])) for match in _BLOCK.finditer(read(page)))
    return [block for block in found if block.language in languages]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return _BLOCK.sub("", read(page))


def links(page: Path) -> list[str]:
    """What the page links to, pictures included."""
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """What `#…` can mean on the page, as GitHub makes it of headings."""
    return {_slug(heading) for heading in _HEADING.findall(prose(page))}


def inline_code(page: Path) -> Iterator[str]:
    yield from (" ".join(code.split()) for code in _CODE.findall(prose(page)))


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
