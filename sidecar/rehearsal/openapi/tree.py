"""The tree of a document: its mappings and lists, its internal references (`$ref`), and their problems."""

import re
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import unquote

from sidecar.config.errors import Place, Problem
from sidecar.config.yaml_tree import Entries, Items, Node, Scalar
from sidecar.core.apikey import without_keys
from sidecar.core.units import counted

Entry = tuple[Scalar, Node]
Fields = Mapping[str, Entry]
"""The entries of a mapping by key."""
NONE: Fields = {}
_MOST_REFERENCES = 10
_LONGEST = 80


class Tree:
    """Collects problems, which make a document unusable, and remarks on parts that are left out."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.problems: list[Problem] = []
        self.remarks: list[Problem] = []
        self._external: list[Problem] = []
        self._known: dict[int, Fields] = {}

    def problem(self, place: Place, message: str) -> None:
        self.problems.append(problem_at(place, message))

    def remark(self, place: Place, message: str) -> None:
        self.remarks.append(problem_at(place, message))

    def mapping(self, node: Node | None, what: str) -> Fields:
        """Returns no entries if the mapping is left out or empty. Anything but a mapping is a problem."""
        if node is None or is_null(node):
            return NONE
        if not isinstance(node, Entries):
            self.problem(node.place, f"{what} must be a mapping, not {'a list' if isinstance(node, Items) else 'text'}")
            return NONE
        if id(node) not in self._known:
            self._known[id(node)] = self._each_once(node)
        return self._known[id(node)]

    def _each_once(self, node: Entries) -> Fields:
        found: dict[str, Entry] = {}
        for key, value in node.entries:
            if key.text in found:
                first = found[key.text][0].place.line
                self.problem(key.place, f"'{short(key.text)}' is a duplicate, first in line {first}: leave one out")
            else:
                found[key.text] = (key, value)
        return found

    def items(self, node: Node | None, what: str) -> tuple[Node, ...]:
        """Returns no items if the list is left out or empty. Anything but a list is a problem."""
        if node is None or is_null(node):
            return ()
        if not isinstance(node, Items):
            self.problem(node.place, f"{what} must be a list")
            return ()
        return node.items

    def followed(self, node: Node, what: str) -> Node | None:
        """Resolves a node that may be `{$ref: '#/…'}`; None if the target is not in this document."""
        for _ in range(_MOST_REFERENCES):
            reference = field_of(self.mapping(node, what), "$ref") if isinstance(node, Entries) else None
            if reference is None:
                return node
            target = self._at(text_in(reference))
            if target is None:
                self._lost(what, reference)
                return None
            node = target
        self.problem(node.place, f"{what} refers to itself")
        return None

    def _lost(self, what: str, reference: Node) -> None:
        text = text_in(reference)
        if text.startswith("#"):
            self.remark(reference.place, f"{what}: `{short(text)}` is not in the document")
        else:
            self._external.append(problem_at(reference.place, f"the reference `{short(text)}`"))

    def remark_external(self) -> None:
        """One remark on all references to other files: a document of many files has hundreds."""
        if self._external:
            first, number = self._external[0], len(self._external)
            others = "" if number == 1 else f", and {counted(number - 1, 'other')}"
            message = f"{first.message}{others}: other files are not read; bundle the document into one"
            self.remarks.append(replace(first, message=message))

    def _at(self, reference: str) -> Node | None:
        """RFC 6901 section 6: a pointer in a fragment."""
        if not reference.startswith("#/"):
            return None
        node: Node = self.root
        for step in reference[2:].split("/"):
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(node, Entries) and name in (entries := self.mapping(node, "it")):
                node = entries[name][1]
            elif isinstance(node, Items) and re.fullmatch("[0-9]{1,6}", name) and int(name) < len(node.items):
                node = node.items[int(name)]
            else:
                return None
        return node


def problem_at(place: Place, message: str) -> Problem:
    """What may be a key, as in an example, is shortened."""
    return Problem(file=place.file, line=place.line, column=place.column, path="", message=without_keys(message))


def field_of(fields: Fields, name: str) -> Node | None:
    return fields[name][1] if name in fields else None


def text_in(node: Node | None) -> str:
    """Empty if there is none, or if it is not text."""
    return node.text if isinstance(node, Scalar) and not is_null(node) else ""


def is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.tag == "null"


def short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
