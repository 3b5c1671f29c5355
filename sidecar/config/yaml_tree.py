"""YAML text to a small tree of nodes, each with its place. Tags construct nothing, and the tree's size is bounded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from sidecar.config.errors import Place, unreadable

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 60

_YAML_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = (None, "!", f"{_YAML_TAG}str")


@dataclass(frozen=True, slots=True)
class Scalar:
    """Text as written. `tag` is the type that YAML 1.1 resolves it to (`str`, `int`, `bool`, `null`, …)."""

    text: str
    tag: str
    place: Place
    literal: bool = False
    """Not from the file: `${VAR}` in it is plain text."""


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: tuple["Node", ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Entries:
    """A mapping, with its duplicate keys and merge keys."""

    entries: tuple[tuple[Scalar, "Node"], ...]
    place: Place


Node = Scalar | Items | Entries


def read_nodes(data: bytes, file: str) -> Node:
    """Parses the one document of a file and expands its aliases. Raises ConfigError."""
    if len(data) > MAX_BYTES:
        raise unreadable(Place(file), f"the file is larger than {MAX_BYTES >> 20} MiB")
    root = _compose(text_of(data, file), file)
    if root is None or (isinstance(root, yaml.ScalarNode) and root.tag == f"{_YAML_TAG}null"):
        raise unreadable(Place(file, 1, 1), "the file is empty")
    return _Expansion(file).expand(root, 0)


def text_of(data: bytes, file: str) -> str:
    """Raises ConfigError where it is not UTF-8; a byte order mark is no part of it."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = error.start - (before.rfind(b"\n") + 1) + 1
        raise unreadable(Place(file, before.count(b"\n") + 1, column), "the file is not UTF-8") from None


def _compose(text: str, file: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(file, before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1)
        raise unreadable(place, "holds a character that YAML does not allow") from None
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        message = " ".join(part for part in (error.context, error.problem) if part)
        raise unreadable(place_of(error.problem_mark or error.context_mark, file), message) from None
    except (ValueError, OverflowError):
        # PyYAML lets chr() fail on an escape such as "\UFFFFFFFF".
        raise unreadable(place_of(loader.get_mark(), file), "holds an escape that is not a character") from None


class _Loader(yaml.SafeLoader):
    """Composes no tags, and no more than MAX_NODES and MAX_DEPTH: the composer is recursive."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._left = MAX_NODES

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave it bare
        if getattr(event, "tag", None) not in _TEXT_TAGS:
            raise yaml.composer.ComposerError(None, None, "tags are not supported", event.start_mark)
        self._left -= 1
        if self._left < 0 or self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, "too many or too deeply nested values", event.start_mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


@dataclass(slots=True)
class _Expansion:
    """Copies a composed graph into a tree of bounded size."""

    file: str
    left: int = MAX_NODES
    open: set[int] = field(default_factory=set)

    def expand(self, node: yaml.Node, depth: int) -> Node:
        place = place_of(node.start_mark, self.file)
        self.left -= 1
        if self.left < 0 or depth > MAX_DEPTH:
            raise unreadable(place, "too many or too deeply nested values once every alias is expanded")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, place)
        if id(node) in self.open:
            raise unreadable(place, "an alias contains itself")
        self.open.add(id(node))
        expanded = self._collection(node, place, depth + 1)
        self.open.remove(id(node))
        return expanded

    def _collection(self, node: yaml.Node, place: Place, depth: int) -> Node:
        if isinstance(node, yaml.MappingNode):
            entries = [(self._key(key, depth), self.expand(value, depth)) for key, value in node.value]
            return Entries(tuple(entries), place)
        return Items(tuple(self.expand(item, depth) for item in node.value), place)

    def _key(self, node: yaml.Node, depth: int) -> Scalar:
        key = self.expand(node, depth)
        if not isinstance(key, Scalar):
            raise unreadable(key.place, "a key must be text")
        return key

    def _scalar(self, node: yaml.ScalarNode, place: Place) -> Scalar:
        if any("\ud800" <= char <= "\udfff" for char in node.value):
            raise unreadable(place, "holds an escape that is not a character")
        return Scalar(node.value, node.tag.removeprefix(_YAML_TAG), place)


def place_of(mark: Any, file: str) -> Place:
    """Of a mark of PyYAML, which may be missing."""
    return Place(file, mark.line + 1, mark.column + 1) if mark is not None else Place(file, 1, 1)


# Variables: `${VAR}` and `${VAR:-default}` in the text of a value; `$$` is a plain `$`.


VARIABLE = re.compile(r"\$(?:(\$)|\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?)")


def replace_variables(text: str, environ: Mapping[str, str]) -> str:
    """Replaces each variable once; a `${VAR}` in a variable's value is plain text.

    As in a shell, the default replaces a variable that is unset or empty. Raises ValueError, which echoes no value.
    """
    return VARIABLE.sub(lambda found: _value(found, environ), text)


def _value(found: re.Match[str], environ: Mapping[str, str]) -> str:
    escaped, name, default = found.groups()
    if escaped:
        return "$"
    if name is None:
        raise ValueError(
            "'${' does not start a variable: write ${NAME} or ${NAME:-default}, or $${ for the characters themselves"
        )
    value = environ.get(name)
    if not value and default is not None:
        return default
    if value is None:
        raise ValueError(f"the variable {name} is not set (write ${{{name}:-default}} to allow that)")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError(f"the variable {name} is not UTF-8")
    return value
