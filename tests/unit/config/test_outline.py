"""Large documents are read in part, in either notation, with the place of each value, and safely."""

import json
import os

import pytest

from sidecar.config.errors import ConfigError
from sidecar.config.outline import MOST_BYTES, Outline, read_outline
from sidecar.config.yaml_tree import Entries, Items, Node

OUTLINE: Outline = {"kept": None, "paths": {"*": {"*": {"tags": None}}}}


def plain(node: Node) -> object:
    if isinstance(node, Entries):
        return {key.text: plain(value) for key, value in node.entries}
    return [plain(item) for item in node.items] if isinstance(node, Items) else node.text


def read(text: str | bytes, outline: Outline = OUTLINE) -> object:
    return plain(read_outline(text.encode() if isinstance(text, str) else text, "api.yaml", outline))


def refused(text: str | bytes, outline: Outline = OUTLINE) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text, outline)
    return str(caught.value)


DOCUMENT = {
    "kept": {"a": [1, "b", None, True]},
    "left out": {"kept": {"deep": ["x", {"y": "z"}]}, "more": "text"},
    "paths": {"/a": {"get": {"tags": ["t"], "responses": {"200": {"tags": "no"}}}}},
}
KEPT = {"kept": {"a": ["1", "b", "null", "true"]}, "paths": {"/a": {"get": {"tags": ["t"]}}}}


def test_only_what_the_outline_names_is_read() -> None:
    assert read(json.dumps(DOCUMENT)) == KEPT
    assert read(json.dumps(DOCUMENT, indent=2).replace("{", "{ ", 1)) == KEPT


def test_yaml_and_json_of_the_same_content_are_the_same() -> None:
    text = "kept: {a: [1, b, null, true]}\nleft out: {kept: [x, {y: z}]}\npaths:\n  /a:\n    get:\n      tags: [t]\n"
    assert read(text) == KEPT
    assert read(text.replace("\n", "\r\n")) == KEPT
    assert read(b"\xef\xbb\xbf" + text.encode()) == KEPT


@pytest.mark.parametrize("text", ['{\n "kept":\n  "x"}', "# a comment\nkept:\n  x"], ids=["json", "yaml"])
def test_each_value_has_its_place(text: str) -> None:
    root = read_outline(text.encode(), "api.yaml", OUTLINE)
    assert isinstance(root, Entries)
    assert [(key.place.line, value.place.line, value.place.column) for key, value in root.entries] == [(2, 3, 3)]


def test_places_in_one_long_line_are_columns() -> None:
    paths: object = {f"/{number}": {"get": {"tags": []}} for number in range(5_000)}
    root = read_outline(json.dumps({"paths": paths}).encode(), "api.json", OUTLINE)
    assert isinstance(root, Entries) and isinstance(root.entries[0][1], Entries)
    key, _ = root.entries[0][1].entries[-1]
    assert (key.text, key.place.line) == ("/4999", 1) and key.place.column > 100_000


def test_an_omitted_anchor_can_still_be_used_by_an_alias() -> None:
    text = "x:\n  - y: {z: &common {tags: [t]}}\n    w: &word v\nkept: [*word, *common]\npaths: {/a: {get: *common}}\n"
    assert read(text) == {"kept": ["v", {"tags": ["t"]}], "paths": {"/a": {"get": {"tags": ["t"]}}}}


def test_merge_keys_bring_what_a_mapping_does_not_have_itself() -> None:
    text = "x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\nkept: {<<: [*x, *y], a: 0}\n"
    assert read(text) == {"kept": {"a": "0", "b": "1", "c": "2"}}
    assert read('kept: {"<<": plain}\n') == {"kept": {"<<": "plain"}}


def test_aliases_of_aliases_are_refused_before_they_are_expanded() -> None:
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert "too many values once every alias is expanded" in refused("\n".join([*lines, "kept: *a29"]))


DANGERS = {
    "nothing": ("", "1:1: the file is empty"),
    "spaces": (" \n\n", "1:1: the file is empty"),
    "a comment": ("# nothing\n", "1:1: the file is empty"),
    "latin-1": (b"kept: \xe9", "1:7: the file is not UTF-8"),
    "utf-16": ("kept: 1".encode("utf-16"), "the file is not UTF-8"),
    "a nul": ("kept: \0", "holds a character that YAML does not allow"),
    "two documents": ("kept: 1\n---\nkept: 2\n", "2:1: holds more than one document"),
    "a list for a key": ("? [a]\n: 1\n", "1:3: a key must be text"),
    "a list behind an alias for a key": ("x: &x [a]\nkept: {*x : 1}", "a key must be text"),
    "an alias of nothing": ("kept: *nothing", "1:7: the alias 'nothing' is not defined before it"),
    "an alias of itself": ("kept: &a [*a]", "1:11: the alias 'a' is not defined before it, or contains itself"),
    "depth": ("kept: " + "[" * 500, "deeply nested"),
    "depth that is left out": ("x: " + "{a: " * 500 + "1" + "}" * 500, "too many or too deeply nested values"),
    "depth in JSON": ('{"kept": ' + "[" * 100_000, "too many or too deeply nested values"),
    "depth in JSON that is left out": ('{"x": ' + "[" * 100_000, "too many or too deeply nested values"),
    "JSON without an end": ('{"kept": {"a": 1', "is not JSON: a comma or } must follow a value"),
    "JSON with more after it": ('{"kept": 1} x', "1:13: is not JSON: something follows the document"),
    "JSON with a lone surrogate": ('{"kept": "\\ud800"}', "1:10: holds an escape that is not a character"),
    "JSON with a word": ('{"kept": nope, "paths": }}', "1:10: is not JSON: Expecting value"),
    "a tab for a space": ("paths:\n\t/a: 1\n", "cannot start any token"),
}


@pytest.mark.parametrize(("text", "expected"), DANGERS.values(), ids=DANGERS)
def test_unreadable_input_is_one_line_with_its_location(text: str | bytes, expected: str) -> None:
    told = refused(text)
    assert told.startswith("api.yaml:") and expected in told and "\n" not in told


def test_random_bytes_are_not_a_document() -> None:
    assert refused(b"\xff" + os.urandom(1000)).startswith("api.yaml:1:1: the file is not UTF-8")


def test_a_file_that_is_too_large_is_not_read() -> None:
    assert refused(b" " * (MOST_BYTES + 1)) == "api.yaml: the file is larger than 32 MiB"


def test_a_mapping_in_braces_may_be_yaml() -> None:
    assert read("{kept: [a, b,], x: 'y',}") == {"kept": ["a", "b"]}


def test_numbers_of_json_are_never_counted_out() -> None:
    assert read('{"kept": ' + "9" * 10_000 + "}") == {"kept": "9" * 10_000}


def test_characters_beyond_sixteen_bits_may_be_escaped_in_json() -> None:
    assert read('{"kept": "\\ud83d\\ude00"}') == {"kept": "\U0001f600"}
