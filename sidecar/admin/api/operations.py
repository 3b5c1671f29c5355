"""The type of the API's operations. The router and the OpenAPI document are made from one table of them."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from msgspec import Struct

from sidecar.admin.api.schemas import RequestSchema
from sidecar.admin.service import AdminService
from sidecar.keys.ports import IdempotencyKey


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A handler's result. Without a status, the response has the operation's first one."""

    value: Struct
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation(Generic[Q, B]):
    """One method on one path. `problems` are its error statuses beside those of every operation."""

    name: str
    method: Literal["GET", "POST", "PATCH"]
    path: str
    summary: str
    query: type[Q]
    body: type[B]
    body_required: bool = True
    """Whether a request must have a body; a missing body is read as the empty object otherwise."""
    handle: Callable[[AdminService, Call[Q, B]], Awaitable[Reply]]
    response: type[Struct]
    group: str
    statuses: tuple[int, ...] = (200,)
    problems: tuple[int, ...] = ()
    takes_if_match: bool = False
    takes_idempotency_key: bool = False
    key_at: str = ""
    """JSON pointer to the id of a key in the response, for links to the operations on that key."""


Operations = tuple[Operation[Any, Any], ...]
"""Operations of any query and body. Annotate no table with it: mypy would no longer compare handlers with schemas."""
