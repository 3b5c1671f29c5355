"""The guide's page on policy tests: each fragment is taken, each key is named, and editors get the same."""

import json
import re

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from msgspec.structs import fields

from sidecar.cli.main import main
from sidecar.config.decoder import decode
from sidecar.config.errors import Report
from sidecar.config.schema import json_schema
from sidecar.config.yaml_tree import read_table
from sidecar.rehearsal.policy_tests.document import (
    CaseEntry,
    Document,
    ExpectEntry,
    ForwardedEntry,
    KeyEntry,
    ResponseEntry,
)
from tests.harness.pages import GUIDE, blocks, read
from tests.harness.running import EXAMPLES

PAGE = GUIDE / "rehearsal.md"
TESTS = sorted(EXAMPLES.glob("*.tests.yml"))


@pytest.mark.parametrize("text", [block.text for block in blocks(PAGE, "yml")])
def test_a_fragment_from_the_guide_is_valid(text: str) -> None:
    root = read_table(text.encode(), "guide")
    report = Report(root.place)
    assert decode(root, Document, report, {}) is not None
    report.close()


@pytest.mark.parametrize("entry", [Document, CaseEntry, KeyEntry, ExpectEntry, ForwardedEntry, ResponseEntry])
def test_the_guide_names_every_key_of_a_file(entry: type) -> None:
    named = set(re.findall(r"\b[a-z_]+\b", read(PAGE)))
    assert {field.encode_name for field in fields(entry)} <= named


@pytest.mark.parametrize("file", TESTS, ids=[file.name for file in TESTS])
def test_an_editor_finds_nothing_wrong_with_the_examples(file: object) -> None:
    class Plain(yaml.SafeLoader):
        """Times stay text, as JSON has them."""

    Plain.yaml_implicit_resolvers = {
        first: [(tag, found) for tag, found in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    document = yaml.load(str(read(file)), Loader=Plain)  # type: ignore[arg-type]  # noqa: S506 - a safe loader
    validator = Draft202012Validator(json_schema(Document, "tests"))
    assert [error.message for error in validator.iter_errors(document)] == []


def test_an_editor_finds_what_is_wrong() -> None:
    schema = json.loads(CliRunner().invoke(main, ["schema", "--tests"], catch_exceptions=False).output)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    wrong = [
        {"GET /x": "alow"},
        {"GET": "allow"},
        {"request": "GET /x"},
        {"request": "GET /x", "expect": {"statsu": 1}},
    ]
    assert all(list(validator.iter_errors({"cases": [case]})) for case in wrong)
