"""The JSON Schema (2020-12) of the configuration file, for editors; made from the types that decode a file.

Wherever a number, a boolean or one of several words is allowed, a text with `${VAR}` is allowed, too.
"""

from collections.abc import Mapping
from inspect import cleandoc
from typing import Any

import msgspec
from msgspec import NODEFAULT, Struct, inspect

from sidecar.config import document, identity, policy
from sidecar.config.decoder import Default, declared, type_in_file

_VARIABLE = r"\$\{"
_VARIABLE_SCHEMA = {"type": "string", "pattern": _VARIABLE}
_RELEASED_NAMES: Mapping[type, str] = {
    document.AccessLogSettings: "AccessLogEntry",
    document.AdminSettings: "AdminEntry",
    document.AdminToken: "AdminTokenEntry",
    document.DecisionSettings: "DecisionEntry",
    document.Drain: "DrainEntry",
    document.Limits: "LimitsEntry",
    document.ListenerTls: "ListenerTlsEntry",
    document.RateLimitHeaders: "RateLimitHeadersEntry",
    document.Reload: "ReloadEntry",
    document.Tracing: "TracingEntry",
    document.UpstreamSettings: "UpstreamEntry",
    document.UpstreamTls: "UpstreamTlsEntry",
    document.UsageSettings: "UsageEntry",
    identity.Identity: "IdentityEntry",
    policy.KeySettings: "KeysEntry",
}
"""Names under `$defs` that other schemas may refer to; by default the name of the class."""


def json_schema(model: type[Struct] = document.Document, title: str = "sidecar configuration") -> dict[str, Any]:
    """The schema of a file that is decoded to `model`."""
    definitions: dict[str, Any] = {}
    root = _Writer(definitions).schema(inspect.type_info(model))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **root,
        "$defs": definitions,
    }


class _Writer:
    """Writes the schema of a type; adds those of structs and enums to `definitions`."""

    def __init__(self, definitions: dict[str, Any]) -> None:
        self._definitions = definitions

    def schema(self, kind: inspect.Type) -> dict[str, Any]:
        found = declared(kind)
        annotations = (kind.extra_json_schema or {}) if isinstance(kind, inspect.Metadata) else {}
        if found.entry is not None:
            return {**annotations, **self.schema(found.entry)}
        if found.parse is not None:
            text = {**annotations, "type": annotations.get("type", "string")}
            return {**text, "pattern": f"{text['pattern']}|{_VARIABLE}"} if "pattern" in text else text
        return {**annotations, **self._bare(found.kind)}

    def _bare(self, kind: inspect.Type) -> dict[str, Any]:
        match kind:
            case inspect.StructType(cls=cls):
                return self._reference(cls, lambda: self._struct(kind))
            case inspect.EnumType(cls=cls):
                return self._reference(cls, lambda: _or_variable({"enum": sorted(member.value for member in cls)}))
            case inspect.UnionType():
                return {"anyOf": [member for found in kind.types for member in self._members(found)]}
            case inspect.DictType():
                return self._dict(kind)
            case inspect.VarTupleType():
                items = {"type": "array", "items": self.schema(kind.item_type)}
                return {**items, "minItems": kind.min_length} if kind.min_length else items
            case _:
                return _scalar(kind)

    def _members(self, kind: inspect.Type) -> list[dict[str, Any]]:
        """The members of a union; nested unions are flattened."""
        entry = declared(kind).entry
        if isinstance(entry, inspect.UnionType):
            return [self.schema(member) for member in entry.types]
        return [self.schema(kind)]

    def _reference(self, cls: type, write: Any) -> dict[str, Any]:
        name = _RELEASED_NAMES.get(cls, cls.__name__)
        if name not in self._definitions:
            self._definitions[name] = {}
            self._definitions[name] = {"title": name, "description": cleandoc(cls.__doc__ or ""), **write()}
        return {"$ref": f"#/$defs/{name}"}

    def _struct(self, kind: inspect.StructType) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {field.encode_name: self._field(field) for field in kind.fields},
            "required": [field.encode_name for field in kind.fields if field.required],
            "additionalProperties": False,
        }

    def _field(self, field: inspect.Field) -> dict[str, Any]:
        schema = self.schema(type_in_file(field))
        if isinstance(field.default_factory, Default):
            written = field.default_factory.written
            return schema if written is None else {**schema, "default": _written(written)}
        if field.default_factory is dict:
            return {**schema, "default": {}}
        return schema if field.default in (NODEFAULT, msgspec.UNSET) else {**schema, "default": _written(field.default)}

    def _dict(self, kind: inspect.DictType) -> dict[str, Any]:
        names = {name: value for name, value in self.schema(kind.key_type).items() if name != "type"}
        if "pattern" in names:
            names["pattern"] = names["pattern"].removesuffix(f"|{_VARIABLE}")
        bounds = {"minProperties": kind.min_length, "maxProperties": kind.max_length}
        return {
            "type": "object",
            **({"propertyNames": names} if names else {}),
            "additionalProperties": self.schema(kind.value_type),
            **{name: bound for name, bound in bounds.items() if bound is not None},
        }


def _scalar(kind: inspect.Type) -> dict[str, Any]:
    match kind:
        case inspect.IntType(ge=ge, le=le):
            return _or_variable({"type": "integer", **_bounds(ge, le)})
        case inspect.FloatType(ge=ge, le=le):
            return {"type": "number", **_bounds(ge, le)}
        case inspect.BoolType():
            return _or_variable({"type": "boolean"})
        case inspect.LiteralType(values=values):
            return _or_variable({"enum": sorted(values)})
        case inspect.StrType(min_length=least):
            return {"type": "string"} if least is None else {"type": "string", "minLength": least}
        case inspect.NoneType():
            return {"type": "null"}
        case inspect.AnyType():
            return {}
        case _:
            raise TypeError(f"no schema for {kind}")


def _or_variable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, _VARIABLE_SCHEMA]}


def _bounds(ge: float | None, le: float | None) -> dict[str, float]:
    return {name: bound for name, bound in (("minimum", ge), ("maximum", le)) if bound is not None}


def _written(value: object) -> Any:
    """A default as written in the file."""
    if isinstance(value, Struct):
        return {field.encode_name: _option(field, value) for field in _given(value)}
    if isinstance(value, list | tuple):
        return [_written(item) for item in value]
    return msgspec.to_builtins(value)


def _given(value: Struct) -> list[msgspec.structs.FieldInfo]:
    """The fields of `value` except those that are left out."""
    return [
        field
        for field in msgspec.structs.fields(value)
        if not (
            isinstance(field.default_factory, Default)
            and field.default_factory.written is None
            and getattr(value, field.name) == field.default_factory()
        )
    ]


def _option(field: msgspec.structs.FieldInfo, value: Struct) -> Any:
    own = getattr(value, field.name)
    if isinstance(field.default_factory, Default) and own == field.default_factory():
        return _written(field.default_factory.written)
    return _written(own)
