"""Files of records: a YAML list, or JSON lines."""

import json
from hashlib import sha256
from typing import Any

import pytest

from sidecar.core.model import KeyStatus
from sidecar.keys.transfer.importer import InvalidFile
from sidecar.keys.validation import KeyRules
from sidecar.store.file import read_records
from tests.unit.keys.test_importing import a_line, line_rules

NUMBER_LIKE = "1" * 40 + "e" + "1" * 23
"""A hash that YAML takes for a number."""


def problems_of(text: str, rules: KeyRules) -> list[str]:
    with pytest.raises(InvalidFile) as caught:
        read_records(text.encode(), line_rules(rules))
    return [str(problem) for problem in caught.value.problems]


def test_yaml_has_the_same_meaning_as_json_lines(rules: KeyRules) -> None:
    more: dict[str, Any] = {"tenant": "acme", "quotas": {"general": 5}, "metadata": {"team": "a"}, "enabled": False}
    lines = [a_line(**more), a_line("sk_live_2", scopes=["streams:write"], expires_at="2030-01-31")]
    as_lines = "\n".join(map(json.dumps, lines))
    as_list = "\n".join(f"- {json.dumps(line)}" for line in lines)
    as_blocks = f"""\
# By hand.
- hash: {lines[0]["hash"]}
  prefix: sk_live_ab
  name: Old key
  tenant: acme
  quotas: {{general: 5}}
  metadata:
    team: a
  enabled: no
- hash: {lines[1]["hash"]}
  prefix: sk_live_ab
  name: Old key
  plan:
  scopes:
  - streams:write
  expires_at: 2030-01-31
"""
    first, second, third = (
        [record.key for record in read_records(text.encode(), line_rules(rules))]
        for text in (as_lines, as_list, as_blocks)
    )
    assert first == second == third
    assert (first[0].status, dict(first[0].quotas)) == (KeyStatus.DISABLED, {"general": 5})


def test_text_stays_as_written_whatever_type_yaml_sees(rules: KeyRules) -> None:
    text = f"- {{hash: {NUMBER_LIKE}, name: yes, prefix: sk_live_ab, metadata: {{since: 2024-01-31, team: 012}}}}"
    [record] = read_records(text.encode(), line_rules(rules))
    assert record.key.digest == bytes.fromhex(NUMBER_LIKE)
    assert (record.key.name, dict(record.key.metadata)) == ("yes", {"since": "2024-01-31", "team": "012"})


def test_each_problem_names_the_line_on_which_its_record_begins(rules: KeyRules) -> None:
    good = sha256(b"x").hexdigest()
    text = f"""\
- {{hash: {good}, name: a, prefix: sk_live_ab}}
- name: b
  hsh: 3
- 7
- hash: {good}
  name: c
  prefix: sk_live_ab
- hash: {good[::-1]}
  hash: {good}
- {{hash: {good[::-1]}, name: d, prefix: sk_live_ab, quotas: {{general: many}}, scopes: streams:read}}
- {{hash: {good[::-1]}, name: e, prefix: sk_live_ab, metadata: {{a: 1, a: 2}}}}
- {{key: sk_live_secret, name: f}}
"""
    assert [problem.split(" (known")[0] for problem in problems_of(text, rules)] == [
        "2: unknown field 'hsh'",
        "4: is not a record: each item of the list maps fields to values",
        "5: hash: is the same as on line 1",
        "8: 'hash' occurs twice",
        "10: quotas: must map names to whole numbers",
        "10: scopes: must be a list of strings, not a string",
        "11: 'a' occurs twice",
        "12: key: is the key itself, which does not belong in a file: write its hash",
    ]


@pytest.mark.parametrize("form", ["- &one {record}\n- *one\n", "[{record}, {record}]\n"], ids=["alias", "one-line"])
def test_a_record_that_is_repeated_on_its_line_is_told(rules: KeyRules, form: str) -> None:
    record = f"{{id: key_{'a' * 20}, hash: {sha256(b'x').hexdigest()}, name: a, prefix: sk_live_ab}}"
    assert problems_of(form.format(record=record), rules) == [
        "1: hash: is the same as in an earlier record of this line",
        "1: id: is the same as in an earlier record of this line",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1: the file is empty; for a file without keys, write []"),
        ("# nothing\n", "1: the file is empty"),
        ("keys: []", "1: the file must be a YAML list of records, or JSON lines"),
        ("- [a", "1: while parsing a flow sequence expected ',' or ']', but got '<stream end>'"),
        ("- !!python/object:os.system {}", "1: tags are not supported"),
    ],
    ids=["nothing", "comment", "mapping", "broken", "tag"],
)
def test_a_file_of_another_shape_is_one_problem(text: str, problem: str, rules: KeyRules) -> None:
    assert problems_of(text, rules) == [problem]


def test_a_list_of_no_records_has_no_keys(rules: KeyRules) -> None:
    assert list(read_records(b"[]\n", line_rules(rules))) == []
