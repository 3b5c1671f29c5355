"""The `routes` section, the sections that say the same for all routes, and error responses."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, field

from sidecar.config.decoder import leaf, made
from sidecar.config.errors import Path, Report
from sidecar.config.fields import (
    Duration,
    HeaderValue,
    OwnHeader,
    PathPrefix,
    SizeOrOff,
    Timeout,
    Token,
    left_out,
    seconds,
)
from sidecar.config.policy import Entry, EnvironmentList, Positive, ScopeList
from sidecar.core.cors import parse_origin
from sidecar.core.model import EVERY, Cors, Mode


class ChargeEntry(Entry, frozen=True, kw_only=True):
    """A quota, and how much of it one request costs."""

    examples = MappingProxyType({"quota": "the name of one of `quotas`, as `quota: uploads`"})

    quota: str
    cost: Positive = 1


Origin = Annotated[str, leaf(parse_origin, "an origin such as https://app.example.com, or *", r"^(\*|[a-z].*://.+)$")]


class CorsEntry(Entry, frozen=True, kw_only=True):
    """What browsers let scripts of other origins send and read."""

    examples = MappingProxyType({"origins": "`origins: [https://app.example.com]`"})

    origins: Annotated[tuple[Origin, ...], Meta(min_length=1)]
    headers: tuple[Token, ...] = ("Content-Type",)
    expose: tuple[Token, ...] = ()
    credentials: bool = False
    max_age: Duration = seconds("10m")


def cors_of(entry: CorsEntry, path: Path, report: Report) -> Cors:
    for name in ("origins", "headers", "expose"):
        for at, text in report.numbered((*path, name), getattr(entry, name)):
            if text == EVERY and entry.credentials:
                why = "browsers reject '*' together with cookies (credentials: true)"
                report.problem(at, f"{why}: list each one")
            elif name != "origins" and "*" in text and text != EVERY:
                report.problem(at, "cannot contain '*': list each name, or write '*' alone for every one")
    return Cors(
        origins=frozenset(entry.origins),
        headers=entry.headers,
        expose=entry.expose,
        credentials=entry.credentials,
        max_age_seconds=int(entry.max_age),
    )


def route_cors_of(written: CorsEntry | bool, path: Path, report: Report) -> Cors | Literal["off"]:
    """`off` is false to YAML."""
    if isinstance(written, CorsEntry):
        return cors_of(written, path, report)
    if written:
        report.problem(path, "must be off, or a mapping with `origins`; left out, it is the file's own `cors`")
    return "off"


class ResponseEntry(Entry, frozen=True, kw_only=True):
    """How the sidecar itself responds."""

    status: Annotated[int, Meta(ge=200, le=599)] = 200
    headers: Mapping[OwnHeader, HeaderValue] = field(default_factory=dict)
    body: Any = UNSET


class ErrorEntry(Entry, frozen=True, kw_only=True):
    """The error response for a reason."""

    status: Annotated[int, Meta(ge=400, le=599)] | None = left_out()
    headers: Mapping[OwnHeader, HeaderValue] | None = left_out()
    detail: bool = False
    """Whether a valid key learns which scopes are missing, or which quota is used up."""
    body: Any = UNSET


class PolicyEntry(Entry, frozen=True, kw_only=True):
    """What a route demands. An empty mapping demands a valid key and nothing else."""

    public: bool = False
    scopes: ScopeList | None = left_out()
    all_scopes: ScopeList | None = left_out()
    tenant: str | None = left_out()
    environment: str | None = left_out()
    environments: EnvironmentList | None = left_out()
    quotas: tuple[str | ChargeEntry, ...] = ()
    pass_through: bool | Literal["only"] = True
    """`only`: only these credentials pass, and no key."""
    respond: Any = UNSET
    """The JSON of a 200; `response` says the whole of it."""
    response: ResponseEntry | None = left_out()
    cors: Annotated[Cors | Literal["off"] | None, made(route_cors_of, bool, CorsEntry)] = left_out()
    """None is the file's own section."""
    cache: Literal["private", "shared"] = "private"
    answer_timeout: Timeout | None = left_out()
    """How long the upstream may take; None uses the upstream's setting."""
    body: SizeOrOff | None = left_out()
    """How long a request's may be; None is as in `limits`."""
    strip_prefix: PathPrefix | None = left_out()
    """None is as the upstream's settings say."""
    upstream: str | None = left_out()
    """One of `upstreams`; None is the default one."""
    mode: Mode | None = left_out()
    """Whether refusals are enforced or only observed; None uses the mode of the group, `defaults` or the file."""
    deny: bool = False
    """Refuses every request, as if no route named it: a hole in a wider route."""


ONLY = "only"
"""As `pass_through`."""

RouteEntry = Annotated[Mapping[str, PolicyEntry], Meta(min_length=1, max_length=1)]


class GroupEntry(Entry, frozen=True, kw_only=True):
    """Routes below one path, and what they demand where they say nothing else. `METHOD` alone is the path itself."""

    examples = MappingProxyType(
        {
            "path": "what the paths of its routes begin with, as `path: /v1/billing`",
            "routes": "the routes below its path, as `routes: [{GET /invoices: {}}]`; one route alone is "
            "`- GET /v1/invoices: {scopes: [...]}`, without `path` and `routes`",
        }
    )

    path: str
    scopes: ScopeList | None = left_out()
    all_scopes: ScopeList | None = left_out()
    tenant: str | None = left_out()
    environment: str | None = left_out()
    environments: EnvironmentList | None = left_out()
    quotas: tuple[str | ChargeEntry, ...] | None = left_out()
    pass_through: bool | None = left_out()
    answer_timeout: Timeout | None = left_out()
    body: SizeOrOff | None = left_out()
    strip_prefix: PathPrefix | None = left_out()
    upstream: str | None = left_out()
    mode: Mode | None = left_out()
    routes: Annotated[tuple[RouteEntry, ...], Meta(min_length=1)]


def group_of(written: GroupEntry | Mapping[str, PolicyEntry], path: Path, report: Report) -> GroupEntry:
    """A route alone is a group of it without a path; a group has one."""
    if not isinstance(written, GroupEntry):
        return GroupEntry(path="", routes=(written,))
    if not written.path:
        report.problem((*path, "path"), "is empty: write what the paths of its routes begin with, such as /v1/billing")
    return written


RouteOrGroup = Annotated[GroupEntry, made(group_of, RouteEntry, GroupEntry)]


class DefaultsEntry(Entry, frozen=True, kw_only=True):
    """What holds for every route that says nothing else."""

    quotas: tuple[str | ChargeEntry, ...] = ()
    mode: Mode | None = left_out()


class UnmatchedEntry(Entry, frozen=True, kw_only=True):
    """What holds where no route matches."""

    public: bool = False
    pass_through: Literal["only"] | None = left_out()
    """Where it is left out, nothing passes."""
    quotas: tuple[str | ChargeEntry, ...] = ()
    method_not_allowed: bool = False
    """Whether a key learns the methods of routes with its path (405), even of routes that it may not use."""
    mode: Mode | None = left_out()
