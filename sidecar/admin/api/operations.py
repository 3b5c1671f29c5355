"""What an operation of the API is. Router and OpenAPI document are made from one table of these."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from msgspec import Struct

from sidecar.admin.api.schemas import Asked
from sidecar.admin.service import AdminService
from sidecar.keys.ports import IdempotencyKey


class NoQuery(Asked, frozen=True, kw_only=True):
    """No parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request, read: body and query are of the operation's types."""

    key_id: str = ""
    query: Any = None
    body: Any = None
    matches: tuple[str, ...] = ()
    """Entity tags of If-Match; empty for none, and for `*`."""
    once: IdempotencyKey | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What is answered. A status of None is the operation's own."""

    value: Struct
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method on one path. `refusals` are the statuses that it may answer with beside those of every operation."""

    name: str
    method: Literal["GET", "POST", "PATCH"]
    path: str
    summary: str
    handle: Callable[[AdminService, Call], Awaitable[Reply]]
    response: type[Struct]
    group: str
    query: type[Asked] = NoQuery
    body: type[Asked] | None = None
    body_needed: bool = True
    """Whether a request without any body is refused; else it is the empty object."""
    statuses: tuple[int, ...] = (200,)
    refusals: tuple[int, ...] = ()
    tagged: bool = False
    """Whether it takes If-Match."""
    once: bool = False
    """Whether it takes Idempotency-Key."""
    key_at: str = ""
    """JSON pointer to the id of a key in the answer, that others of these operations may be about."""
