"""Reads parts of a large YAML or JSON document: what an outline names, each value with its place.

Everything else is parsed and discarded immediately, so that memory is bounded by what the outline names. An OpenAPI
document of 20 MB is mostly schemas and examples, which are not needed here.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from sidecar.config.errors import ConfigError, Place, unreadable
from sidecar.config.yaml_tree import Entries, Items, Node, Scalar, place_of, text_of

MOST_BYTES = 32 << 20
MOST_NODES = 2_000_000
"""Most nodes that the outline names, with aliases expanded: a few lines of nested aliases can mean billions."""
MOST_DEPTH = 100

Outline = Mapping[str, "Outline"] | None
"""Keys of a mapping that are read, `*` for every other one, and which parts of their values; None: everything.

The outline of a list is that of each of its items.
"""
_NOTHING: Outline = {}
_MERGE = "<<"
_NULLS = ("", "~", "null", "Null", "NULL")
# libyaml's parser is some thirty times as fast; PyYAML's wheels have it, a build without a C compiler does not.
_STARTS = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_ENDS = (yaml.MappingEndEvent, yaml.SequenceEndEvent)
_NODES = (yaml.ScalarEvent, *_STARTS)
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_outline(data: bytes, file: str, outline: Outline) -> Node:
    """The part of a document that `outline` names. Raises ConfigError with the one place that cannot be read."""
    if len(data) > MOST_BYTES:
        raise unreadable(Place(file), f"the file is larger than {MOST_BYTES >> 20} MiB")
    text = text_of(data, file)
    if not text.strip():
        raise unreadable(Place(file, 1, 1), "the file is empty")
    if not text.lstrip().startswith("{"):
        return _YamlReader(file).read(text, outline)
    try:
        return _JsonReader(text, file).read(outline)
    except ConfigError:
        # A mapping in braces may also be YAML; if it is neither, the JSON error is reported.
        try:
            return _YamlReader(file).read(text, outline)
        except ConfigError:
            pass
        raise


def _below(outline: Outline, key: str) -> Outline:
    """Which part of the value of `key` is read; `_NOTHING` if the value is left out."""
    if outline is None:
        return None
    return outline[key] if key in outline else outline.get("*", _NOTHING)


# YAML, from the parser's events: no graph of the whole document is ever composed.


@dataclass(slots=True)
class _Frame:
    """A collection that is being read."""

    place: Place
    outline: Outline
    wanted: bool
    """Whether the outline names it; an anchored value that it does not name is kept only for its aliases."""
    mapping: bool
    anchor: str | None
    key: Scalar | None = None
    entries: list[tuple[Scalar, Node]] = field(default_factory=list)
    items: list[Node] = field(default_factory=list)
    size: int = 1
    """Number of values in it, with aliases expanded."""
    skipped: int = 0
    """How many enclosing collections are left out: it is kept only for its aliases."""

    def node(self) -> Node:
        return (
            Entries(tuple(_merged(self.entries)), self.place) if self.mapping else Items(tuple(self.items), self.place)
        )


@dataclass(slots=True)
class _YamlReader:
    file: str
    frames: list[_Frame] = field(default_factory=list)
    anchors: dict[str, tuple[Node, int]] = field(default_factory=dict)
    root: Node | None = None
    documents: int = 0
    skipped: int = 0
    """How many open collections below the last of `frames` the outline leaves out."""

    def read(self, text: str, outline: Outline) -> Node:
        try:
            for event in yaml.parse(text, Loader=_PARSER):
                if self.skipped:
                    self._skip(event)
                else:
                    self._take(event, outline)
        except yaml.MarkedYAMLError as error:
            message = " ".join(part for part in (error.context, error.problem) if part)
            raise unreadable(place_of(error.problem_mark or error.context_mark, self.file), message) from None
        except (yaml.YAMLError, ValueError, OverflowError):
            raise unreadable(Place(self.file, 1, 1), "holds a character that YAML does not allow") from None
        if self.root is None:
            raise unreadable(Place(self.file, 1, 1), "the file is empty")
        return self.root

    def _skip(self, event: Any) -> None:
        """Skip an event; most events of a large document end here."""
        kind = type(event)
        if kind in _ENDS:
            self.skipped -= 1
            if not self.skipped:
                self._drop()
        elif kind in _NODES and event.anchor is not None:
            self._keep_for_aliases(event)
        elif kind in _STARTS:
            self.skipped += 1
            self._check_depth(event)

    def _keep_for_aliases(self, event: Any) -> None:
        name: str = event.anchor
        if isinstance(event, yaml.ScalarEvent):
            self.anchors[name] = (self._text(event), 1)
            return
        frame = self._frame(event, None, wanted=False)
        frame.skipped, self.skipped = self.skipped, 0
        self.frames.append(frame)

    def _take(self, event: Any, outline: Outline) -> None:
        match event:
            case yaml.DocumentStartEvent():
                self.documents += 1
                if self.documents > 1:
                    self._refuse(event, "holds more than one document")
            case yaml.ScalarEvent():
                self._scalar(event, outline)
            case yaml.AliasEvent():
                self._alias(event)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._open(event, outline)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._close(event)

    def _refuse(self, event: Any, message: str) -> NoReturn:
        raise unreadable(place_of(event.start_mark, self.file), message)

    def _check_depth(self, event: Any) -> None:
        if len(self.frames) + self.skipped > MOST_DEPTH:
            self._refuse(event, "too many or too deeply nested values")

    def _awaits_key(self) -> bool:
        return bool(self.frames) and self.frames[-1].mapping and self.frames[-1].key is None

    def _outline(self, root: Outline) -> Outline:
        """The outline of the next value."""
        if not self.frames:
            return root
        frame = self.frames[-1]
        return _below(frame.outline, frame.key.text) if frame.key is not None else frame.outline

    def _open(self, event: Any, root: Outline) -> None:
        self._check_depth(event)
        if self._awaits_key():
            self._refuse(event, "a key must be text")
        outline = self._outline(root)
        if outline != _NOTHING:
            self.frames.append(self._frame(event, outline, wanted=True))
        elif event.anchor is not None:
            self._keep_for_aliases(event)
        else:
            self.skipped = 1

    def _frame(self, event: Any, outline: Outline, *, wanted: bool) -> _Frame:
        return _Frame(
            place=place_of(event.start_mark, self.file),
            outline=outline,
            wanted=wanted,
            mapping=isinstance(event, yaml.MappingStartEvent),
            anchor=event.anchor,
        )

    def _close(self, event: Any) -> None:
        frame = self.frames.pop()
        node = frame.node()
        if frame.anchor is not None:
            self.anchors[frame.anchor] = (node, frame.size)
        self.skipped = frame.skipped
        if frame.wanted:
            self._put(node, frame.size, event)
        elif not self.skipped:
            self._drop()

    def _scalar(self, event: Any, root: Outline) -> None:
        awaits_key = self._awaits_key()
        wanted = not awaits_key and self._outline(root) != _NOTHING
        if not (awaits_key or wanted or event.anchor is not None):
            self._drop()
            return
        node = self._text(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = (node, 1)
        if awaits_key:
            self.frames[-1].key = node
        elif wanted:
            self._put(node, 1, event)
        else:
            self._drop()

    def _text(self, event: Any) -> Scalar:
        place = place_of(event.start_mark, self.file)
        plain = event.style is None or event.style == ""
        tag = "merge" if plain and event.value == _MERGE else "null" if plain and event.value in _NULLS else "str"
        return Scalar(checked(event.value, place), tag, place)

    def _alias(self, event: Any) -> None:
        if event.anchor not in self.anchors:
            self._refuse(event, f"the alias '{event.anchor}' is not defined before it, or contains itself")
        node, size = self.anchors[event.anchor]
        if self._awaits_key():
            if not isinstance(node, Scalar):
                self._refuse(event, "a key must be text")
            self.frames[-1].key = node
        else:
            self._put(node, size, event)

    def _put(self, node: Node, size: int, event: Any) -> None:
        """Add a value to the enclosing collection."""
        if not self.frames:
            self.root = node
            return
        frame = self.frames[-1]
        frame.size += size
        if frame.size > MOST_NODES:
            self._refuse(event, "too many values once every alias is expanded")
        if not frame.mapping:
            frame.items.append(node)
        elif frame.key is not None:
            frame.entries.append((frame.key, node))
            frame.key = None

    def _drop(self) -> None:
        """Discard a value."""
        if self.frames:
            self.frames[-1].key = None


def _merged(entries: list[tuple[Scalar, Node]]) -> Iterator[tuple[Scalar, Node]]:
    """The entries, with those of merge keys (`<<: *common`) for keys that the mapping itself lacks."""
    known = {key.text for key, _ in entries}
    for key, value in entries:
        if key.tag != "merge":
            yield key, value
            continue
        for brought in value.items if isinstance(value, Items) else (value,):
            for entry in brought.entries if isinstance(brought, Entries) else ():
                if entry[0].text not in known:
                    known.add(entry[0].text)
                    yield entry


def checked(text: str, place: Place) -> str:
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise unreadable(place, "holds an escape that is not a character")
    return text


# JSON. libyaml refuses what JSON allows (`"\ud83d\ude00"`), and json.loads knows no places: so the containers that the
# outline names are taken apart here, and json skips what it leaves out.


_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
_CONSTANTS = {None: "null", True: "true", False: "false"}


class _JsonReader:
    def __init__(self, text: str, file: str) -> None:
        self._text, self._file, self._at = text, file, 0
        self._counted, self._line, self._line_start = 0, 1, 0

    def read(self, outline: Outline) -> Node:
        try:
            node = self._value(outline, 0)
            if self._peek():
                self._refuse("something follows the document")
        except json.JSONDecodeError as error:
            self._at = error.pos
            raise unreadable(self._place(), f"is not JSON: {error.msg}") from None
        except RecursionError:
            raise unreadable(self._place(), "too many or too deeply nested values") from None
        return node

    def _place(self) -> Place:
        """The current place. Lines are counted from the last requested place."""
        if self._at < self._counted:
            self._counted, self._line, self._line_start = 0, 1, 0
        self._line += self._text.count("\n", self._counted, self._at)
        self._line_start = self._text.rfind("\n", self._counted, self._at) + 1 or self._line_start
        self._counted = self._at
        return Place(self._file, self._line, self._at - self._line_start + 1)

    def _refuse(self, message: str) -> NoReturn:
        raise unreadable(self._place(), f"is not JSON: {message}")

    def _peek(self) -> str:
        """The next character that is not a space; empty at the end."""
        char = self._text[self._at : self._at + 1]
        if char > " ":
            return char
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return self._text[self._at : self._at + 1]

    def _value(self, outline: Outline, depth: int) -> Node:
        if depth > MOST_DEPTH:
            self._refuse("too many or too deeply nested values")
        match self._peek():
            case "{":
                return self._mapping(outline, depth + 1)
            case "[":
                return self._list(outline, depth + 1)
            case _:
                place, value = self._place(), self._skip()
                if isinstance(value, str):
                    return Scalar(checked(value, place), "str", place)
                return Scalar(_CONSTANTS[value], "null" if value is None else "bool", place)

    def _skip(self) -> Any:
        """Read a value of any kind."""
        self._peek()
        value, self._at = _DECODER.raw_decode(self._text, self._at)
        return value

    def _mapping(self, outline: Outline, depth: int) -> Entries:
        place, entries = self._place(), list[tuple[Scalar, Node]]()
        for _ in self._between("}"):
            if self._peek() != '"':
                self._refuse("a key must be text in double quotes")
            at = self._place()
            key = Scalar(checked(self._skip(), at), "str", at)
            if self._peek() != ":":
                self._refuse("a colon must follow a key")
            self._at += 1
            below = _below(outline, key.text)
            if below == _NOTHING:
                self._skip()
            else:
                entries.append((key, self._value(below, depth)))
        return Entries(tuple(entries), place)

    def _list(self, outline: Outline, depth: int) -> Items:
        place = self._place()
        return Items(tuple(self._value(outline, depth) for _ in self._between("]")), place)

    def _between(self, end: str) -> Iterator[None]:
        """Yields once before each value of a collection that ends with `end`."""
        self._at += 1
        if self._peek() == end:
            self._at += 1
            return
        while True:
            yield
            found = self._peek()
            if found not in (",", end) or not found:
                self._refuse(f"a comma or {end} must follow a value")
            self._at += 1
            if found == end:
                return
