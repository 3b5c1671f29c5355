"""The pages are consistent: links work, tables are complete, configuration loads, commands exist."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click
import pytest
import yaml

from sidecar.cli.main import main
from sidecar.config.load import load
from tests.harness.pages import GUIDE, PAGES, README, Block, anchors, blocks, inline_code, links, read
from tests.harness.processes import ROOT

DEPLOY, CODE = ROOT / "deploy" / "README.md", ROOT / "sidecar" / "README.md"
EVERY_PAGE = sorted({*ROOT.glob("*.md"), *(ROOT / "deploy").rglob("*.md"), *ROOT.glob("[!.]*/README.md")})
RELEASED = ROOT / "tests" / "wire" / "contracts" / "released"
_COMMAND = re.compile(r"(?:^|\$\(|-- |\| |&& |; )sidecar ([^|)&;>\n]*)", re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", EVERY_PAGE, ids=[name_of(page) for page in EVERY_PAGE])


def released(name: str) -> Any:
    return json.loads((RELEASED / f"{name}.json").read_text(encoding="utf-8"))


@each_page
def test_no_link_is_dead(page: Path) -> None:
    dead = []
    for link in links(page):
        place, _, anchor = unquote(link).partition("#")
        if re.match(r"[a-z]+:", place):
            continue
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_every_page_of_the_guide_can_be_reached_from_the_readme() -> None:
    linked = {(ROOT / link).resolve() for link in links(README)}
    assert {*GUIDE.glob("*.md"), DEPLOY, CODE, ROOT / "CHANGELOG.md"} <= linked


def test_the_map_of_the_code_names_only_what_is_there() -> None:
    folders = ("", "sidecar/", "tests/")
    named = {code for code in inline_code(CODE) if re.fullmatch(r"[\w./]+(?:/|\.py)", code)}
    assert len(named) > 5
    assert [code for code in named if not any((ROOT / folder / code).exists() for folder in folders)] == []
    rooms = {found.name for found in (ROOT / "sidecar").iterdir() if (found / "__init__.py").exists()}
    [floors] = blocks(CODE, "text")
    assert rooms <= set(re.findall(r"^ ?\d? +(\w+)  ", floors.text, re.MULTILINE))


def fragments() -> Iterator[tuple[str, Block]]:
    for page in PAGES:
        for number, block in enumerate(blocks(page, "yaml")):
            yield f"{page.stem}-{number}", block


@pytest.mark.parametrize("block", [block for _, block in fragments()], ids=[name for name, _ in fragments()])
def test_configuration_on_a_page_loads(block: Block, tmp_path: Path) -> None:
    """A fragment stands for what it changes in the configuration of README: sections are merged, lists replaced."""
    [whole] = blocks(README, "yaml")
    config = yaml.safe_load(whole.text)
    for name, section in yaml.safe_load(block.text).items():
        mergeable = isinstance(section, dict) and isinstance(config.get(name), dict)
        config[name] = {**config[name], **section} if mergeable else section
    file = tmp_path / "sidecar.yaml"
    file.write_text(block.text if block == whole else yaml.safe_dump(config), encoding="utf-8")
    environ = dict.fromkeys(re.findall(r"\$\{(\w+)\}", block.text), "secret")
    assert load(str(file), environ=environ).routes


def test_the_table_of_metrics_is_complete() -> None:
    known = {}
    for family, about in released("metrics").items():
        name = f"{family}_total" if about["type"] == "counter" else family
        known[name] = set(about["labels"]) - {"le"}
    rows = re.findall(r"^\| (`sidecar_.*?) \| (.*?) \|", read(GUIDE / "operations.md"), re.MULTILINE)
    listed = {
        name: set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)|:.*", "", labels)))
        for names, labels in rows
        for name in re.findall(r"`(sidecar_\w+)`", names)
    }
    assert listed == known


def test_the_table_of_the_access_log_is_complete() -> None:
    fields = {field for line in released("log_line") for field in line}
    section = read(GUIDE / "operations.md").partition("### Access log")[2].partition("```")[0]
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)))) == fields


def test_the_table_of_the_api_is_complete() -> None:
    paths = released("openapi")["paths"]
    known = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    listed = re.findall(r"^\| (GET|POST|PATCH) \| `(.+?)` \|", read(GUIDE / "admin.md"), re.MULTILINE)
    assert {(method, f"/api/v1{path}") for method, path in listed} == known


def test_every_promise_is_carried_by_a_test() -> None:
    promised = set(re.findall(r"^\| ([SR]\d\.\d+) \|", read(GUIDE / "security.md"), re.MULTILINE))
    assert len(promised) > 50
    code = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    carried = {found.upper().replace("_", ".") for found in re.findall(r"(?<![a-z])(?i:[sr])\d[_.]\d+", code)}
    assert promised - carried == set()
    places = [code for code in inline_code(GUIDE / "security.md") if code.startswith("tests/")]
    assert [place for place in places if not (ROOT / place).exists()] == []


@each_page
def test_every_command_on_a_page_exists_with_its_options(page: Path) -> None:
    shell = "\n".join(block.text for block in blocks(page, "bash", "console", "sh")).replace("\\\n", " ")
    typed = _COMMAND.findall(shell)
    named = [code.removeprefix("sidecar ") for code in inline_code(page) if code.startswith("sidecar ")]
    for line in [*typed, *named]:
        parse(shlex.split(line, comments=True))


def parse(words: list[str]) -> None:
    """Raises click.UsageError where there is no such command or option."""
    command: click.Command = main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        child = command.get_command(click.Context(command), words[0])
        if child is None:
            raise click.UsageError(f"no command {words[0]}")
        command, words = child, words[1:]
    # A command keeps the help option that it was first asked for: with other names, `-h` would be none in later tests.
    context = click.Context(command, help_option_names=main.context_settings["help_option_names"])
    command.make_parser(context).parse_args(list(words))


def test_files_and_folders_that_deployment_commands_name_are_there() -> None:
    text = "\n".join(block.text for block in blocks(DEPLOY, "console"))
    files = re.findall(r"-[fc] (\S+/\S+)", text)
    folders = [ROOT / "deploy" / "kubernetes" / folder for folder in re.findall(r"apply -k (\S+)", text)]
    assert files and folders
    assert [place for place in [*(ROOT / file for file in files), *folders] if not place.exists()] == []


def test_every_block_has_a_language_that_some_test_knows() -> None:
    known = {"sh", "bash", "console", "yaml", "yml", "text"}
    fences = {fence for page in (*PAGES, DEPLOY) for fence in re.findall(r"^ *```(\w*)$", read(page), re.MULTILINE)}
    assert fences - {""} <= known
