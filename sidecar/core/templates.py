"""Placeholders in header templates and in the JSON bodies of our own responses.

`{key.id}` is replaced by a value; `{{` and `}}` are braces. In a JSON body, a string that is exactly one placeholder
takes the value's own type, so a number stays a number.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")

KEY_PLACEHOLDERS = frozenset(
    {
        "key.id",
        "key.name",
        "key.prefix",
        "key.tenant",
        "key.environment",
        "key.scopes",
        "key.plan",
        "key.metadata.*",
        "key.expires_at",
        "key.replaced_at",
        "key.retires_at",
    }
)
QUOTA_PLACEHOLDERS = frozenset(
    {
        "quota.name",
        "quota.limit",
        "quota.used",
        "quota.remaining",
        "quota.reset",
        "quota.reset_at",
        "quota.retry_after",
    }
)
IDENTITY_PLACEHOLDERS = KEY_PLACEHOLDERS | {"request.id"}
EVERY_QUOTA = "quotas"
"""A list with an object for each quota of the key."""
RESPOND_PLACEHOLDERS = KEY_PLACEHOLDERS | QUOTA_PLACEHOLDERS | {EVERY_QUOTA}
ERROR_PLACEHOLDERS = QUOTA_PLACEHOLDERS | {"reason", "status", "detail", "scopes.required"}


def unknown_placeholders(template: object, allowed: frozenset[str]) -> list[str]:
    """The placeholders of a JSON-like template that are not in `allowed` (`a.*` allows everything below a)."""
    return [name for name in placeholders(template) if name not in allowed and not _below(name, allowed)]


def placeholders(template: object) -> list[str]:
    """Every placeholder of a JSON-like template."""
    return [name for text in _strings(template) for name in _names(text)]


def of_key(name: str) -> bool:
    """Whether the placeholder needs a key, which not every request has."""
    return name == EVERY_QUOTA or name.startswith("key.")


def render(template: object, values: Mapping[str, object]) -> Any:
    """A JSON value with every placeholder replaced. A name missing in `values` is null (in text: empty)."""
    match template:
        case str():
            return _render_text(template, values)
        case Mapping():
            return {name: render(value, values) for name, value in template.items()}
        case list() | tuple():
            return [render(value, values) for value in template]
        case _:
            return template


def render_text(template: str, values: Mapping[str, object]) -> str:
    """Text with every placeholder replaced; lists are joined by spaces, absent values are empty."""
    return _TOKEN.sub(lambda token: _as_text(_value(token, values)), template)


def _render_text(template: str, values: Mapping[str, object]) -> object:
    whole = _TOKEN.fullmatch(template)
    if whole is not None and whole[1] is not None:
        return values.get(whole[1])
    return render_text(template, values)


def _value(token: re.Match[str], values: Mapping[str, object]) -> object:
    return values.get(token[1]) if token[1] is not None else token[0][0]


def _as_text(value: object) -> str:
    match value:
        case None:
            return ""
        case list() | tuple():
            return " ".join(map(str, value))
        case _:
            return str(value)


def _strings(template: object) -> Iterator[str]:
    match template:
        case str():
            yield template
        case Mapping():
            for value in template.values():
                yield from _strings(value)
        case list() | tuple():
            for value in template:
                yield from _strings(value)


def _names(text: str) -> list[str]:
    return [token[1] for token in _TOKEN.finditer(text) if token[1] is not None]


def _below(name: str, allowed: frozenset[str]) -> bool:
    parent, _, leaf = name.rpartition(".")
    return leaf != "" and f"{parent}.*" in allowed
