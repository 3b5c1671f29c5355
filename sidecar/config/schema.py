"""The JSON Schema (2020-12) of the configuration file, for editors; from the same types that a file is read with."""

from typing import Any

import msgspec

from sidecar.config.document import Document

_VARIABLE = r"\$\{"
_KEYWORD = "propertyNames"


def json_schema() -> dict[str, Any]:
    """Wherever a value of its own kind may stand, text with a `${VAR}` may stand as well."""
    schema = _open(msgspec.json.decode(msgspec.json.encode(msgspec.json.schema(Document))))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "sidecar configuration", **schema}


def _open(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_open(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    opened = {name: value if name in (_KEYWORD, "default") else _open(value) for name, value in schema.items()}
    if "pattern" in opened:
        opened["pattern"] = f"{opened['pattern']}|{_VARIABLE}"
        return opened
    if opened.get("type") in ("integer", "boolean") or "enum" in opened:
        kept = {name: opened.pop(name) for name in ("title", "description", "default") if name in opened}
        return {**kept, "anyOf": [opened, {"type": "string", "pattern": _VARIABLE}]}
    return opened
