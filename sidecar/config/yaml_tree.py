"""YAML text to a small tree of nodes, each with its place. Tags construct nothing, and the tree's size is bounded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from sidecar.config.errors import ConfigError, Place, unreadable

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
    """Whether it is not from the file: then `${VAR}` in it is plain text."""


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
    """Raises ConfigError if it is not UTF-8; a byte order mark is removed."""
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
        raise _not_yaml(error, file) from None
    except (ValueError, OverflowError):
        # PyYAML lets chr() fail on an escape such as "\UFFFFFFFF".
        raise unreadable(place_of(loader.get_mark(), file), "holds an escape that is not a character") from None


def _not_yaml(error: yaml.MarkedYAMLError, file: str) -> ConfigError:
    message = " ".join(part for part in (error.context, error.problem) if part)
    if "but got '{'" in message:
        message += ": put a path with {…} in quotes here"
    elif r"character '\t'" in message:
        message += ": indent with spaces"
    return unreadable(place_of(error.problem_mark or error.context_mark, file), message)


class _Loader(yaml.SafeLoader):
    """Composes no tags, and at most MAX_NODES and MAX_DEPTH: the composer is recursive."""

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
    """The place of a PyYAML mark, which may be missing."""
    return Place(file, mark.line + 1, mark.column + 1) if mark is not None else Place(file, 1, 1)


# Tables of thousands of lines: built from libyaml's events, in a sixth of the time. Its messages differ.


MOST_TABLE_BYTES = 8 << 20
_MOST_TABLE_NODES = 500_000
_EVENTS: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_table(data: bytes, file: str) -> Node:
    """As `read_nodes`, for larger files. Raises ConfigError."""
    if len(data) > MOST_TABLE_BYTES:
        raise unreadable(Place(file), f"the file is larger than {MOST_TABLE_BYTES >> 20} MiB: make it several")
    text = text_of(data, file)
    try:
        root = _Events(text, file).document()
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, file) from None
    except yaml.reader.ReaderError as error:
        place = Place(file, text[: error.position].count("\n") + 1, 1) if error.position else Place(file, 1, 1)
        raise unreadable(place, "holds a character that YAML does not allow") from None
    except (ValueError, OverflowError):
        raise unreadable(Place(file, 1, 1), "holds an escape that is not a character") from None
    if root is None or (isinstance(root, Scalar) and root.tag == "null"):
        raise unreadable(Place(file, 1, 1), "the file is empty")
    return root


class _Events:
    """Builds nodes while reading. An alias repeats the same node, which counts again each time."""

    def __init__(self, text: str, file: str) -> None:
        self._loader = _EVENTS(text)
        self._next, self._resolve = self._loader.get_event, self._loader.resolve
        self._file, self._left = file, _MOST_TABLE_NODES
        self._deepest = 0
        self._anchors: dict[str, tuple[Node, int, int] | None] = {}
        """A node, its size and its height; None while it is open."""

    def document(self) -> Node | None:
        """Raises ConfigError, and exceptions of PyYAML."""
        self._next()
        if isinstance(event := self._next(), yaml.StreamEndEvent):
            return None
        root = self._node(self._next(), 0)
        self._next()
        if not isinstance(event := self._next(), yaml.StreamEndEvent):
            place = place_of(event.start_mark, self._file)
            raise unreadable(place, "expected a single document, but found another one")
        return root

    def _node(self, event: Any, depth: int) -> Node:
        mark = event.start_mark
        place = Place(self._file, mark.line + 1, mark.column + 1)
        if isinstance(event, yaml.AliasEvent):
            return self._repeated(str(event.anchor), place, depth)
        if event.tag not in _TEXT_TAGS:
            raise unreadable(place, "tags are not supported")
        self._count(1, place, depth)
        if event.anchor is None:
            return self._new(event, place, depth)
        self._anchors[event.anchor], left, deepest, self._deepest = None, self._left, self._deepest, depth
        node = self._new(event, place, depth)
        self._anchors[event.anchor] = node, left - self._left + 1, self._deepest - depth
        self._deepest = max(self._deepest, deepest)
        return node

    def _new(self, event: Any, place: Place, depth: int) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, place)
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(event := self._next(), yaml.SequenceEndEvent):
                items.append(self._node(event, depth + 1))
            return Items(tuple(items), place)
        entries = []
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            if not isinstance(key, Scalar):
                raise unreadable(key.place, "a key must be text")
            entries.append((key, self._node(self._next(), depth + 1)))
        return Entries(tuple(entries), place)

    def _scalar(self, event: Any, place: Place) -> Scalar:
        text = event.value
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise unreadable(place, "holds an escape that is not a character")
        if event.tag is not None or not event.implicit[0]:
            return Scalar(text, "str", place)
        tag: str = self._resolve(yaml.ScalarNode, text, event.implicit)
        return Scalar(text, tag.removeprefix(_YAML_TAG), place)

    def _repeated(self, anchor: str, place: Place, depth: int) -> Node:
        if anchor not in self._anchors:
            raise unreadable(place, f"found undefined alias {anchor!r}")
        found = self._anchors[anchor]
        if found is None:
            raise unreadable(place, "an alias contains itself")
        node, size, height = found
        self._count(size, place, depth + height)
        return node

    def _count(self, nodes: int, place: Place, depth: int) -> None:
        self._left -= nodes
        self._deepest = max(self._deepest, depth)
        if self._left < 0 or depth > MAX_DEPTH:
            raise unreadable(place, "too many or too deeply nested values")


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
