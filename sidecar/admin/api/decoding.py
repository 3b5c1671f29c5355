"""A request's body and query to values, or to everything that is wrong with them at once."""

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

import msgspec
from aiohttp import web

from sidecar.admin.problems import Flaw, Refusal, flawed, pointer_of
from sidecar.core.units import microseconds

T = TypeVar("T", bound=msgspec.Struct)

_WHERE = re.compile(r" - at `.*`$", re.DOTALL)
_WORDS: Final = tuple(
    (re.compile(written, re.DOTALL), said)
    for written, said in (
        (r"Expected `\w+` of length >= 1$", "must not be empty"),
        (r"Expected `\w+` of length >= (\d+)$", r"must have a length of \1 or more"),
        (r"Expected `\w+` of length <= (\d+)$", r"must have a length of \1 or less"),
        (r"Expected `\w+` >= (\S+)$", r"must be at least \1"),
        (r"Expected `\w+` <= (\S+)$", r"must be at most \1"),
        (r"Expected `\w+` matching regex (.+)$", r"must match \1"),
        (r"Expected `(.+)`, got `(.+)`$", r"must be \1, not \2"),
    )
)
"""msgspec's sentences, and ours."""
_TIME = re.compile(r"(/expires_at|\?since|\?until)$")
"""Where a text is a time."""
_QUERY: Final = "?"
_BODY_SECONDS: Final = 10
_MOST_FLAWS: Final = 100
"""More of them help nobody, and would cost far more than the body that holds them."""
_MOST_PARTS: Final = 1_000
"""What has more is too long as a whole."""


async def body_of(request: web.Request) -> bytes:
    """Raises Refusal 408 where it does not come, and HTTPRequestEntityTooLarge."""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        detail = f"the body did not come within {_BODY_SECONDS} seconds"
        raise Refusal(408, "body_too_slow", detail, headers={"Connection": "close"}) from None


def read_body(body: bytes, kind: type[T]) -> T:
    """Raises Refusal 400 with a pointer to each bad field."""
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise flawed([Flaw(pointer="", detail="is not JSON")]) from None
    return _read(value, kind, "")


def read_query(pairs: Sequence[tuple[str, str]], kind: type[T]) -> T:
    """The query's parameters as a struct; numbers are written as such. Raises Refusal 400."""
    names = [name for name, _ in pairs]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise flawed(Flaw(pointer=f"{_QUERY}{name}", detail="is given more than once") for name in doubled)
    return _read(dict(pairs), kind, _QUERY)


def _read(value: object, kind: type[T], root: str) -> T:
    strict = root != _QUERY
    if not isinstance(value, dict):
        raise flawed([Flaw(pointer=root, detail="must be a JSON object")])
    flaws = list(islice(_struct_flaws(value, kind, root), _MOST_FLAWS))
    if flaws:
        raise flawed(flaws)
    return msgspec.convert(value, kind, strict=strict)


def _struct_flaws(value: Mapping[str, object], kind: type[msgspec.Struct], root: str) -> Iterator[Flaw]:
    """What is wrong, each part judged alone, because msgspec stops at the first."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name in value:
        if name not in fields:
            yield Flaw(pointer=_below(root, name), detail="is not known here")
    for name, field in fields.items():
        if name in value:
            yield from _flaws(value[name], field.type, _below(root, name))
        elif field.required:
            yield Flaw(pointer=_below(root, name), detail="is missing")


def _flaws(value: object, kind: Any, at: str) -> Iterator[Flaw]:
    parts = _parts(value, kind)
    inside = (flaw for name, part, inner in parts for flaw in _flaws(part, inner, at + pointer_of([name])))
    found = list(islice(inside, _MOST_FLAWS))
    try:
        if not found:
            msgspec.convert(value, kind, strict=not at.startswith(_QUERY))
            if isinstance(value, str) and _TIME.search(at):
                _check_time(value)
    except ValueError as error:
        found.append(Flaw(pointer=at, detail=_said(str(error))))
    yield from found


def _said(message: str) -> str:
    message = _WHERE.sub("", message)
    return next((said.expand(words) for pattern, words in _WORDS if (said := pattern.match(message))), message)


def _check_time(text: str) -> None:
    """Raises ValueError."""
    try:
        microseconds(text)
    except ValueError:
        raise ValueError("is no time of the calendar") from None


def _parts(value: object, kind: Any) -> list[tuple[str, object, Any]]:
    """The items of a list, or the values of an object, with the type that each should have."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(value, list | dict) and len(value) > _MOST_PARTS:
        return []
    if origin is Annotated or origin in (Union, UnionType):
        return next((parts for one in arguments if (parts := _parts(value, one))), [])
    if origin is tuple and isinstance(value, list):
        return [(str(index), part, arguments[0]) for index, part in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return [(name, part, arguments[1]) for name, part in value.items()]
    return []


def _below(root: str, name: str) -> str:
    return f"{_QUERY}{name}" if root == _QUERY else root + pointer_of([name])
