"""Decodes YAML nodes to values of a declared type; reports unknown keys, wrong types and missing fields at their place.

msgspec.inspect reads the types, so that the document's structs, the decoder and the JSON Schema cannot differ. Two
annotations go beyond what msgspec knows: `leaf` (a text with a parser) and `made` (a value built from an entry). A
mapping of at most one entry omits its key from the path, so that a list of them gives `routes[2].scopes`.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from enum import Enum, auto
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

from msgspec import Meta, inspect

from sidecar.config.errors import Path, Report, did_you_mean
from sidecar.config.yaml_tree import VARIABLE, Entries, Items, Node, Scalar, replace_variables

Parse = Callable[[str], object]
Make = Callable[[Any, Path, Report], object]

_type_of = lru_cache(inspect.type_info)
"""A model has about a hundred types, and is the same at each load."""


def leaf(parse: Parse, description: str, pattern: str = "") -> Meta:
    """Declares a value that is text in the file and the result of `parse` in the program."""
    schema = {"pattern": pattern} if pattern else {}
    return Meta(description=description, extra={"parse": parse}, extra_json_schema=schema)


def made(make: Make, *entries: object) -> Meta:
    """Declares a value that is one of `entries` in the file; `make(entry, path, report)` returns the value.

    `make` reports what is wrong with an option, and raises ValueError if it cannot return a value.
    """
    kinds = tuple(map(inspect.type_info, entries))
    return Meta(extra={"entry": kinds[0] if len(kinds) == 1 else inspect.UnionType(kinds), "make": make})


class Default:
    """A default: as written in the file (None: as when left out), and as used by the program."""

    def __init__(self, written: object, value: object) -> None:
        self.written, self._value = written, value

    def __call__(self) -> object:
        return self._value


# Scalars: one YAML scalar to one Python value. Each function raises ValueError with what the value must be.


Number = TypeVar("Number", int, float)

_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9_]{0,17})")
_DECIMAL = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,18})?|\.[0-9]{1,18}")
_TRUTH: Mapping[str, bool] = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def read_scalar(text: str, tag: str, kind: inspect.Type) -> object:
    """`text` as a value of `kind`. The tag `var` is the text of a variable, which may be of any type."""
    match kind:
        case inspect.IntType():
            return _bounded(_whole(text, tag), kind)
        case inspect.FloatType():
            return _bounded(_decimal(text, tag), kind)
        case inspect.BoolType():
            return _truth(text, tag)
        case inspect.LiteralType(values=values):
            return _one_of(text, [str(value) for value in values])
        case inspect.EnumType(cls=cls):
            return cls(_one_of(text, [str(member.value) for member in cls]))
        case _:
            return _long_enough(_text(text, tag), kind)


def read_json(text: str, tag: str) -> object:
    """`text` as the JSON value of its tag."""
    match tag:
        case "null":
            return None
        case "bool":
            return _truth(text, tag)
        case "int":
            return _whole(text, tag)
        case "float":
            return _number(text)
        case _:
            return text


def _text(text: str, tag: str) -> str:
    if tag not in ("str", "var", "value"):
        raise ValueError("must be text: put it in quotes")
    return text


def _long_enough(text: str, kind: inspect.Type) -> str:
    if isinstance(kind, inspect.StrType) and len(text) < (kind.min_length or 0):
        # An empty `client_ca` or `tenant`, as from an unset variable, would lift its restriction.
        raise ValueError("must not be empty: leave it out for none")
    return text


def _whole(text: str, tag: str) -> int:
    if tag not in ("int", "var"):
        raise ValueError("must be a whole number")
    if not _WHOLE.fullmatch(text):
        # YAML 1.1 reads 010 as 8 and 1:30 as 90.
        raise ValueError("must be a whole number in plain decimal digits")
    return int(text.replace("_", ""))


def _decimal(text: str, tag: str) -> float:
    if tag not in ("int", "float", "var") or not _DECIMAL.fullmatch(text):
        raise ValueError("must be a number such as 0.1")
    return float(text)


def _bounded(number: Number, kind: inspect.IntType | inspect.FloatType) -> Number:
    if kind.ge is not None and number < kind.ge:
        raise ValueError(f"must be at least {kind.ge}")
    if kind.le is not None and number > kind.le:
        raise ValueError(f"must be at most {kind.le}")
    return number


def _truth(text: str, tag: str) -> bool:
    if tag not in ("bool", "var") or text.lower() not in _TRUTH:
        raise ValueError("must be true or false")
    return _TRUTH[text.lower()]


def _number(text: str) -> float:
    try:
        number = float(text.replace("_", ""))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("is not a JSON number: put it in quotes")
    return number


def _one_of(text: str, words: list[str]) -> str:
    if text not in words:
        choice = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
        raise ValueError(f"must be {choice}{did_you_mean(text, words)}")
    return text


T = TypeVar("T")


_MOST_NAMES = 20


class _Invalid(Enum):
    """Marks a value that could not be decoded; its problem has been reported."""

    INVALID = auto()


_INVALID = _Invalid.INVALID


class Declared(NamedTuple):
    """A type without its annotations, and its declaration by `leaf` or `made`."""

    kind: inspect.Type
    parse: Parse | None = None
    entry: inspect.Type | None = None
    make: Make | None = None

    @property
    def is_leaf(self) -> bool:
        return self.parse is not None or isinstance(self.kind, _SCALARS)


_SCALARS = (
    inspect.StrType,
    inspect.IntType,
    inspect.FloatType,
    inspect.BoolType,
    inspect.LiteralType,
    inspect.EnumType,
)


def declared(kind: inspect.Type) -> Declared:
    if not isinstance(kind, inspect.Metadata):
        return Declared(kind)
    extra = kind.extra or {}
    return Declared(kind.type, extra.get("parse"), extra.get("entry"), extra.get("make"))


def type_in_file(field: inspect.Field) -> inspect.Type:
    """The type of a field in the file: None means that the value is left out, and is never written."""
    optional = isinstance(field.default_factory, Default) and field.default_factory.written is None
    if not optional or not isinstance(field.type, inspect.UnionType):
        return field.type
    members = tuple(member for member in field.type.types if not isinstance(member, inspect.NoneType))
    return members[0] if len(members) == 1 else inspect.UnionType(members)


def decode(root: Node, model: type[T], report: Report, environ: Mapping[str, str]) -> T | None:
    """The document, with defaults for invalid values; None if it cannot be decoded at all."""
    value = _Decoder(report, environ).value(root, _type_of(cast(Any, model)), ())
    return value if isinstance(value, model) else None


class _Decoder:
    def __init__(self, report: Report, environ: Mapping[str, str]) -> None:
        self._report = report
        self._environ = environ

    def value(self, node: Node, kind: inspect.Type, path: Path) -> object:
        chosen = declared(member := _choose(node, kind))
        if chosen.make is not None and chosen.entry is not None:
            return self._made(node, chosen.entry, chosen.make, path)
        if isinstance(node, Scalar) and node.tag != "null" and chosen.is_leaf:
            return self._leaf(node, chosen, path, _besides(kind, member))
        match node, chosen.kind:
            case Entries(), inspect.StructType() if not chosen.is_leaf:
                return self._struct(node, chosen.kind, path)
            case Entries(), inspect.DictType():
                return self._dict(node, chosen.kind, path)
            case Items(), inspect.VarTupleType():
                return self._tuple(node, chosen.kind, path)
            case Scalar(tag="null"), inspect.NoneType():
                return None
            case _, inspect.AnyType() if not chosen.is_leaf:
                return self._json(node, path)
            case _:
                self._report.problem(path, f"must be {_describe(kind)}, not {_found(node)}")
                return _INVALID

    def _made(self, node: Node, entry: inspect.Type, make: Make, path: Path) -> object:
        value = self.value(node, entry, path)
        if value is _INVALID:
            return _INVALID
        try:
            return make(value, path, self._report)
        except ValueError as error:
            if self._report.sound(path):
                self._report.problem(path, str(error))
            return _INVALID

    def _struct(self, node: Entries, kind: inspect.StructType, path: Path) -> object:
        fields = {field.encode_name: field for field in kind.fields}
        values: dict[str, object] = {}
        for key, child in self._entries(node, path):
            at = (*path, key.text)
            if key.text not in fields:
                close = did_you_mean(key.text, fields) or _known(fields)
                self._report.key_problem(at, f"unknown key{close}", key.place)
                continue
            self._report.place(at, key.place, child.place)
            values[key.text] = self.value(child, type_in_file(fields[key.text]), at)
        missing = [name for name, field in fields.items() if field.required and name not in values]
        for name in missing:
            self._report.problem((*path, name), f"missing: write {cast(Any, kind.cls).examples[name]}")
        good = {fields[name].name: value for name, value in values.items() if value is not _INVALID}
        broken = any(field.required and field.name not in good for field in kind.fields)
        return _INVALID if broken else kind.cls(**good)

    def _dict(self, node: Entries, kind: inspect.DictType, path: Path) -> object:
        single = kind.max_length == 1
        if single and len(node.entries) != 1:
            self._report.problem(path, "must have one key, with its options indented below it")
            return _INVALID
        values = {}
        for key, child in self._entries(node, path):
            at = path if single else (*path, key.text)
            self._report.place(at, key.place, child.place)
            name = self._key(key, kind.key_type, at)
            value = self.value(child, kind.value_type, at)
            if name is not _INVALID and value is not _INVALID:
                values[name] = value
        return _INVALID if single and not values else MappingProxyType(values)

    def _tuple(self, node: Items, kind: inspect.VarTupleType, path: Path) -> object:
        if kind.min_length and len(node.items) < kind.min_length:
            self._report.problem(path, "must not be empty: list at least one, or leave it out")
            return _INVALID
        values: dict[int, object] = {}
        for index, item in enumerate(node.items):
            self._report.place((*path, index), item.place, item.place)
            value = self.value(item, kind.item_type, (*path, index))
            if value is not _INVALID:
                values[index] = value
        self._report.keep(path, values)
        return tuple(values.values())

    def _json(self, node: Node, path: Path) -> object:
        match node:
            case Entries():
                return {
                    key.text: self._json_below(child, (*path, key.text)) for key, child in self._entries(node, path)
                }
            case Items():
                return [self._json_below(item, (*path, index)) for index, item in enumerate(node.items)]
            case Scalar():
                return self._converted(node, path, read_json)

    def _json_below(self, node: Node, path: Path) -> object:
        self._report.place(path, node.place, node.place)
        return self._json(node, path)

    def _entries(self, node: Entries, path: Path) -> Iterator[tuple[Scalar, Node]]:
        """The entries of a mapping, each key once."""
        known: dict[str, Scalar] = {}
        for key, child in node.entries:
            if key.tag == "merge":
                self._report.key_problem(
                    (*path, key.text), "merge keys are not supported: write the keys out", key.place
                )
            elif key.text in known:
                first = known[key.text].place
                self._report.key_problem((*path, key.text), f"duplicate key, first in line {first.line}", key.place)
            else:
                known[key.text] = key
                yield key, child

    def _key(self, key: Scalar, kind: inspect.Type, path: Path) -> object:
        parse = declared(kind).parse
        try:
            return key.text if parse is None else parse(key.text)
        except ValueError as error:
            self._report.key_problem(path, str(error))
            return _INVALID

    def _leaf(self, node: Scalar, leaf: Declared, path: Path, others: str) -> object:
        def read(text: str, tag: str) -> object:
            return read_scalar(text, tag, leaf.kind) if leaf.parse is None else leaf.parse(text)

        return self._converted(node, path, read, others)

    def _converted(self, node: Scalar, path: Path, read: Callable[[str, str], object], others: str = "") -> object:
        text, tag, blamed = node.text, node.tag, ""
        try:
            if tag == "str" and not node.literal and "$" in text:
                text, tag = replace_variables(text, self._environ), "var"
                blamed = _blamed(node.text)
            return read(text, tag)
        except ValueError as error:
            self._report.problem(path, f"{error}{'' if 'did you mean' in str(error) else others}{blamed}")
            return _INVALID


def _blamed(text: str) -> str:
    """The source of a wrong value, if it is not the line of the file itself."""
    names = sorted({name for _, name, _ in VARIABLE.findall(text) if name})
    return f" (the value is that of {', '.join(names)})" if names else ""


def _known(names: Collection[str]) -> str:
    """The names, if they are few enough for one line."""
    return f" (known are {', '.join(sorted(names))})" if len(names) <= _MOST_NAMES else ""


def _choose(node: Node, kind: inspect.Type) -> inspect.Type:
    """The member of a union that matches the shape of the node; the union itself if none does."""
    if not isinstance(kind, inspect.UnionType):
        return kind
    null = isinstance(node, Scalar) and node.tag == "null"
    word = isinstance(node, Scalar) and any(_holds_word(node, member) for member in kind.types)
    for member in sorted(kind.types, key=lambda member: not _holds_word(node, member)) if word else kind.types:
        found = declared(member)
        if null:
            fits = isinstance(found.kind, inspect.NoneType)
        elif found.make is not None:
            fits = True
        elif isinstance(found.kind, inspect.BoolType):
            fits = isinstance(node, Scalar) and (node.text.lower() in _TRUTH or "$" in node.text)
        elif isinstance(node, Scalar):
            fits = found.is_leaf
        elif isinstance(node, Entries):
            fits = isinstance(found.kind, inspect.StructType | inspect.DictType) and not found.is_leaf
            fits = fits and _may_be(node, found.kind, kind)
        else:
            fits = isinstance(found.kind, inspect.VarTupleType)
        if fits:
            return member
    return kind


def _besides(kind: inspect.Type, member: inspect.Type) -> str:
    """`, or …` for what else than `member` a union takes, but for lists of the same; empty where nothing does."""
    others = [other for other in kind.types if other != member] if isinstance(kind, inspect.UnionType) else []
    named = [_describe(other) for other in others if not isinstance(other, inspect.NoneType | inspect.VarTupleType)]
    return "".join(f", or {name}" for name in dict.fromkeys(named))


def _holds_word(node: Node, member: inspect.Type) -> bool:
    """Whether the node is one of the words in `member`: such as `only`, where a boolean is also allowed."""
    return isinstance(member, inspect.LiteralType) and isinstance(node, Scalar) and node.text in member.values


def _may_be(node: Entries, member: inspect.Type, union: inspect.UnionType) -> bool:
    """If both a struct and a mapping of free keys are allowed: it is the struct if it has a required key."""
    kinds = [declared(other).kind for other in union.types]
    structs = [kind for kind in kinds if isinstance(kind, inspect.StructType)]
    if not structs or not any(isinstance(kind, inspect.DictType) for kind in kinds):
        return True
    needed = {field.encode_name for struct in structs for field in struct.fields if field.required}
    return isinstance(member, inspect.StructType) == any(key.text in needed for key, _ in node.entries)


def _describe(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata(extra={"entry": entry}):
            return _describe(entry)
        case inspect.Metadata(type=bare, extra_json_schema=schema):
            return str((schema or {}).get("description") or _describe(bare))
        case inspect.UnionType(types=types):
            members = (_describe(member) for member in types if not isinstance(member, inspect.NoneType))
            return " or ".join(dict.fromkeys(members))
        case inspect.StructType() | inspect.DictType():
            return "a mapping"
        case inspect.VarTupleType():
            return "a list"
        case inspect.IntType():
            return "a whole number"
        case inspect.FloatType():
            return "a number"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType(values=values):
            return " or ".join(map(str, values))
        case inspect.EnumType(cls=cls):
            return " or ".join(str(member.value) for member in cls)
        case _:
            return "text"


def _found(node: Node) -> str:
    match node:
        case Entries():
            return "a mapping"
        case Items():
            return "a list"
        case _:
            return (
                "nothing (write {} for an empty mapping, or leave the key out)"
                if node.tag == "null"
                else "a single value"
            )
