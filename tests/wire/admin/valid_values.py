"""For schemathesis: fills in what a schema cannot express, in requests that should be accepted.

Scopes, plans and environments are those of the configuration, texts are printable, times are past or to come. Each
request names another client, because wrong tokens are slowed by address, and every operation is tried with one.
"""

from itertools import count
from typing import Any, Final

import schemathesis

_FUTURE: Final = "2099-01-31T12:00:00+02:00"
_CLIENTS: Final = count()


@schemathesis.hook
def before_call(_context: Any, case: schemathesis.Case[Any], _kwargs: dict[str, Any]) -> None:
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    number = next(_CLIENTS)
    case.headers["X-Forwarded-For"] = f"10.0.{number // 256 % 256}.{number % 256}"
    if isinstance(case.body, dict):
        case.body = {name: _known(name, value) for name, value in case.body.items()}
    since, until = (case.query.get(name) for name in ("since", "until"))
    if since and (until or since > "2026"):
        del case.query["since"]


def _known(name: str, value: Any) -> Any:
    match name, value:
        case "scopes", list():
            return ["streams:read", "streams:write"][: len(value)]
        case "quotas", dict():
            return dict(zip(["general"], value.values(), strict=False))
        case "metadata", dict():
            return {entry: _printable(text) for entry, text in value.items()}
        case "environment", str():
            return "live"
        case "plan", str():
            return "pro"
        case "expires_at", str():
            return value if _FUTURE < value < "9999" else _FUTURE
        case "name", str():
            return _printable(value).strip() or "a key"
    return value


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())
