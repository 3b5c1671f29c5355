"""The type of the API's operations. The router and the OpenAPI document are made from one table of them."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import UnionType
from typing import Annotated, Any, Final, Generic, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from aiohttp import web
from msgspec import Struct

from sidecar.admin.api.requests import (
    RequestSchema,
)
from sidecar.admin.problems import FieldError, Problem, invalid_request, pointer_of
from sidecar.admin.service import AdminService
from sidecar.keys.ports import IdempotencyKey

# Decodes a request's body and query. A problem lists every invalid field at once.


T = TypeVar("T", bound=msgspec.Struct)

_LOCATION = re.compile(r" - at `.*`$", re.DOTALL)
_MESSAGES: Final = tuple(
    (re.compile(pattern, re.DOTALL), text)
    for pattern, text in (
        (r"Expected `\w+` of length >= 1$", "must not be empty"),
        (r"Expected `\w+` of length >= (\d+)$", r"must have a length of \1 or more"),
        (r"Expected `\w+` of length <= (\d+)$", r"must have a length of \1 or less"),
        (r"Expected `\w+` >= (\S+)$", r"must be at least \1"),
        (r"Expected `\w+` <= (\S+)$", r"must be at most \1"),
        (r"Expected `\w+` matching regex (.+)$", r"must match \1"),
        (r"Expected `(.+)`, got `(.+)`$", r"must be \1, not \2"),
    )
)
"""msgspec's messages, and the API's own."""
_NO_CHOICE: Final = "Invalid enum value"
_TIME = re.compile(r"(/expires_at|\?since|\?until)$")
"""Fields whose text is a time."""
_WRONG_TIME: Final = "must be a time with an offset, such as 2027-01-31T12:00:00Z"
_QUERY: Final = "?"
_BODY_SECONDS: Final = 10
_MAX_ERRORS: Final = 100
"""The most errors in one response: more would help nobody, and cost far more than sending the body."""
_SHOWN: Final = 12
"""The number of characters of a member's name that are repeated: it may be a secret in the wrong place."""
_MAX_PARTS: Final = 1_000
"""A list or object with more items is reported as too long, and its parts are not checked."""


async def body_of(request: web.Request) -> bytes:
    """Read the body. Raises Problem 408 if it takes too long, and HTTPRequestEntityTooLarge."""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        detail = f"the body did not arrive within {_BODY_SECONDS} seconds"
        raise Problem(408, "body_too_slow", detail, headers={"Connection": "close"}) from None


def read_body(body: bytes, kind: type[T]) -> T:
    """The JSON body as a struct. Raises Problem 400 with a pointer to each invalid field."""
    try:
        value = _DECODER.decode(body)
        json.loads(body, object_pairs_hook=_each_once)
    except _Doubled as doubled:
        raise invalid_request([FieldError(pointer="", detail=f"names {doubled} twice in one object")]) from None
    except (ValueError, RecursionError):
        raise invalid_request([FieldError(pointer="", detail="is not JSON")]) from None
    return _read(value, kind, "")


def _number(text: str) -> int | float:
    """`5.0` and `5e0` are the integer 5 (JSON Schema: a number without a fraction is an integer)."""
    number = float(text)
    return int(number) if number.is_integer() else number


_DECODER: Final = msgspec.json.Decoder(float_hook=_number)


class _Doubled(Exception):
    """Raised if an object names a member twice. Holds the beginning of the name, in quotes."""


def _each_once(members: list[tuple[str, object]]) -> None:
    """Which of two counts differs among parsers: one that checks may read another than one that acts (RFC 8259 §4)."""
    seen = set[str]()
    for name, _ in members:
        if name in seen:
            raise _Doubled(repr(name[:_SHOWN]))
        seen.add(name)


def read_query(pairs: Sequence[tuple[str, str]], kind: type[T]) -> T:
    """The query parameters as a struct; texts become numbers if the field is a number. Raises Problem 400."""
    names = [name for name, _ in pairs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise invalid_request(
            FieldError(pointer=f"{_QUERY}{name}", detail="must be given only once") for name in repeated
        )
    return _read(dict(pairs), kind, _QUERY)


def _read(value: object, kind: type[T], root: str) -> T:
    strict = root != _QUERY
    if not isinstance(value, dict):
        raise invalid_request([FieldError(pointer=root, detail="must be a JSON object")])
    errors = list(islice(_struct_errors(value, kind, root), _MAX_ERRORS))
    if errors:
        raise invalid_request(errors)
    return msgspec.convert(value, kind, strict=strict)


def _struct_errors(value: Mapping[str, object], kind: type[msgspec.Struct], root: str) -> Iterator[FieldError]:
    """Checks each part separately, because msgspec stops at the first error."""
    fields = {one.encode_name: one for one in msgspec.structs.fields(kind)}
    for name in value:
        if name not in fields:
            yield FieldError(pointer=_below(root, name), detail="is not a known field")
    for name, one in fields.items():
        if name in value:
            yield from _value_errors(value[name], one.type, _below(root, name))
        elif one.required:
            yield FieldError(pointer=_below(root, name), detail="is required")


def _value_errors(value: object, kind: Any, at: str) -> Iterator[FieldError]:
    found = list(islice(_errors_inside(value, kind, at), _MAX_ERRORS))
    try:
        if not found:
            msgspec.convert(value, kind, strict=not at.startswith(_QUERY))
    except ValueError as error:
        wrong_time = isinstance(value, str) and _TIME.search(at)
        found.append(FieldError(pointer=at, detail=_WRONG_TIME if wrong_time else _message(str(error), kind)))
    yield from found


def _errors_inside(value: object, kind: Any, at: str) -> Iterator[FieldError]:
    structs = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, Struct)]
    if structs and isinstance(value, dict):
        yield from _struct_errors(value, structs[0], at)
    for name, part, inner in _parts(value, kind):
        yield from _value_errors(part, inner, at + pointer_of([name]))


def _message(text: str, kind: Any) -> str:
    text = _LOCATION.sub("", text)
    if text.startswith(_NO_CHOICE) and (choices := list(_choices(kind))):
        return f"must be one of {', '.join(choices)}"
    return next((found.expand(own) for pattern, own in _MESSAGES if (found := pattern.match(text))), text)


def _choices(kind: Any) -> Iterator[str]:
    """The words that a field may have."""
    for one in get_args(kind):
        yield from [one] if get_origin(kind) is Literal else _choices(one)


def _parts(value: object, kind: Any) -> list[tuple[str, object, Any]]:
    """The items of a list, or the values of an object: name, value and expected type of each."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(value, list | dict) and len(value) > _MAX_PARTS:
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


class NoQuery(RequestSchema, frozen=True, kw_only=True):
    """An operation without query parameters."""


class NoBody(RequestSchema, frozen=True, kw_only=True):
    """An operation without a body; the empty object is allowed."""


Q = TypeVar("Q", bound=RequestSchema)
B = TypeVar("B", bound=RequestSchema)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Q, B]):
    """A decoded request to an operation with the query `Q` and the body `B`."""

    key_id: str = ""
    query: Q
    body: B
    matches: tuple[str, ...] = ()
    """Entity tags of If-Match; empty without the header, and for `*`."""
    idempotency_key: IdempotencyKey | None = None


Bare = Call[NoQuery, NoBody]
"""A request without parameters and body."""
ONE_KEY: Final = "/keys/{id}"
"""The path of a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A handler's result. Without a status, the response has the operation's first one."""

    value: Struct
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation(Generic[Q, B]):
    """One method on one path. `problems` are its error statuses in addition to those of every operation."""

    name: str
    method: Literal["GET", "POST", "PATCH"]
    path: str
    summary: str
    query: type[Q]
    body: type[B]
    body_required: bool = True
    """Whether a request must have a body; otherwise a missing body is read as the empty object."""
    handle: Callable[[AdminService, Call[Q, B]], Awaitable[Reply]]
    response: type[Struct]
    group: str
    statuses: tuple[int, ...] = (200,)
    problems: tuple[int, ...] = ()
    unknown: str = ""
    """What a 404 means, if it is not about a key."""
    takes_if_match: bool = False
    takes_idempotency_key: bool = False
    key_at: str = ""
    """JSON pointer to the id of a key in the response, for links to the operations on that key."""


Operations = tuple[Operation[Any, Any], ...]
"""Operations of any query and body. Annotate no table with it: mypy would no longer compare handlers with schemas."""
