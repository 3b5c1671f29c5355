"""Requests and responses of the API about the policy in force, and how responses are made."""

from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from sidecar.admin.api.requests import RequestSchema, Tenant
from sidecar.admin.api.schemas import RouteOut
from sidecar.admin.api.serializers import route_out
from sidecar.admin.policy import Audience, ConfigState, Outcomes, Reach, audience, needs
from sidecar.config.build.modes import Modes
from sidecar.core.model import Route
from sidecar.core.units import rfc3339
from sidecar.gate.reach import ClosedRoute
from sidecar.keys.records import PublicKey, public_key


class PolicyQuery(RequestSchema, frozen=True, kw_only=True):
    """Which routes to show. `search`: a part of the name, ignoring case. `used`: whether there were requests."""

    search: Annotated[str, Meta(max_length=200)] | UnsetType = UNSET
    scope: Annotated[str, Meta(max_length=200, description="that the route names")] | UnsetType = UNSET
    used: Literal["any", "yes", "no"] = "any"


class ReachQuery(RequestSchema, frozen=True, kw_only=True):
    """The route, and filters for its keys."""

    route: Annotated[str, Meta(min_length=1, max_length=1000, description="name, as in the configuration")]
    tenant: Tenant | UnsetType = UNSET
    after: Annotated[str, Meta(max_length=200, description="`next` of the previous page")] | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=500)] = 50


class OutcomesOut(Struct, frozen=True, kw_only=True):
    """How many requests were allowed, refused, and not served because of a fault of the sidecar or the service."""

    allowed: int
    server_errors: int
    """The part of `allowed` to which the service responded with 5xx; counted in `last_day` only."""
    refused: int
    faults: int
    denied: dict[str, int]
    """Refusals and faults by reason."""
    would_deny: dict[str, int]
    """Requests that were let through only because of `mode: observe`, by the reason that would have refused them."""


class ForwardingOut(Struct, frozen=True, kw_only=True):
    """How allowed requests are forwarded. Null: as for all routes."""

    upstream: str | None
    responds: int | None
    """Status with which the sidecar itself responds; null if the upstream responds."""
    strip_prefix: str | None
    answer_timeout_seconds: float | None
    body_bytes: int | None
    unlimited_body: bool
    shared_cache: bool
    origins: tuple[str, ...]
    """Origins whose scripts may read responses."""


class RoutePolicyOut(Struct, frozen=True, kw_only=True):
    """A route, its requirements in words, and the outcomes of its requests."""

    route: RouteOut
    needs: str
    observed: bool
    """Whether refusals are only counted and logged (`mode: observe`). A scope or quota may still say `enforce`."""
    audience: Audience
    """Who may pass: everybody, nobody, only requests without a key, or keys that meet the requirements."""
    forwarding: ForwardingOut
    last_day: OutcomesOut
    """Of the last 24 hours. Only requests with a recognised key count, and only keys that this admin token may see."""
    since_start: OutcomesOut | None
    """Requests with and without a key, since `counted_since`; null for an administrator of one tenant."""


class PolicyOut(Struct, frozen=True, kw_only=True):
    """The routes that fit, in the order of the file. The last, `(none)`, stands for requests that match no route."""

    routes: tuple[RoutePolicyOut, ...]
    since: str
    """The beginning of `last_day`."""
    counted_since: str


class TenantKeysOut(Struct, frozen=True, kw_only=True):
    """The number of keys of one tenant; `tenant` is null for keys that have none."""

    tenant: str | None
    count: int


class ScopeKeysOut(Struct, frozen=True, kw_only=True):
    """The number of keys that hold a scope."""

    scope: str
    count: int


class ReachOut(Struct, frozen=True, kw_only=True):
    """The valid keys that can reach a route, newest first; at most 10,000 keys are searched for one response."""

    route: str
    audience: Audience
    """Keys are searched only if it is `keys`."""
    keys: tuple[PublicKey, ...]
    next: str | None
    """The cursor of the next keys."""
    count: int
    """How many of the searched keys can reach it."""
    looked_at: int
    whole: bool
    """Whether every key (of the tenant, after the cursor) was searched."""
    tenants: tuple[TenantKeysOut, ...]
    """The 100 tenants with most keys."""
    scopes: tuple[ScopeKeysOut, ...]
    """The 100 scopes with most keys. A key counts once for each of its scopes that the route names."""


class ClosedRouteOut(Struct, frozen=True, kw_only=True):
    """A route that a key may not use, and what would open it."""

    route: RouteOut
    missing: tuple[str, ...]
    """Scopes that the route names and the key does not have."""
    opened_by: tuple[str, ...]
    """Scopes, each of which alone would let the key pass."""
    bar: str
    """What keeps the key out, whatever its scopes; empty where only scopes do."""


class KeyReachOut(Struct, frozen=True, kw_only=True):
    """The routes that a key may use, and those that it may not."""

    allowed: tuple[RouteOut, ...]
    closed: tuple[ClosedRouteOut, ...]


class ConfigProblemOut(Struct, frozen=True, kw_only=True):
    """A problem of a configuration file. `where` is `file:line:column`; empty if the file itself is valid."""

    where: str
    message: str


class PendingOut(Struct, frozen=True, kw_only=True):
    """The configuration that was refused at the newest reload."""

    since: str
    """When a reload was first refused since the configuration in force was loaded; `at`: when it was last refused."""
    at: str
    problems: tuple[ConfigProblemOut, ...]
    """The first 100 of `total`; none for an administrator of one tenant."""
    total: int


class ConfigurationOut(Struct, frozen=True, kw_only=True):
    """The configuration in force. An administrator of one tenant sees no `path` (null) and no `needs_restart`."""

    path: str | None
    sha256: str
    since: str
    needs_restart: tuple[str, ...]
    """Options that were changed in the file, and take effect at the next restart."""
    pending: PendingOut | None
    """Null where the newest reload succeeded."""


def route_policy_out(
    modes: Modes, route: Route, last_day: Mapping[str, Outcomes], since_start: Mapping[str, Outcomes] | None
) -> RoutePolicyOut:
    counted = None if since_start is None else _outcomes_out(since_start.get(route.name, Outcomes()))
    return RoutePolicyOut(
        route=route_out(route),
        needs=needs(route),
        observed=bool(modes.because(route, None)),
        audience=audience(route),
        forwarding=_forwarding_out(route),
        last_day=_outcomes_out(last_day.get(route.name, Outcomes())),
        since_start=counted,
    )


def _outcomes_out(outcomes: Outcomes) -> OutcomesOut:
    return OutcomesOut(
        allowed=outcomes.allowed,
        server_errors=outcomes.server_errors,
        refused=outcomes.refused,
        faults=outcomes.count("fault"),
        denied=dict(outcomes.denied),
        would_deny=dict(outcomes.would_deny),
    )


def _forwarding_out(route: Route) -> ForwardingOut:
    policy, forward = route.policy, route.policy.forward
    bounded = forward.body_bytes is not None and isfinite(forward.body_bytes)
    return ForwardingOut(
        upstream=forward.upstream,
        responds=None if policy.respond is None else policy.respond.status,
        strip_prefix=forward.strip_prefix,
        answer_timeout_seconds=forward.answer_timeout_seconds,
        body_bytes=int(forward.body_bytes) if bounded and forward.body_bytes is not None else None,
        unlimited_body=forward.body_bytes is not None and not bounded,
        shared_cache=policy.shared_cache,
        origins=() if policy.cors is None else tuple(sorted(policy.cors.origins)),
    )


def reach_out(route: Route, found: Reach, now: int) -> ReachOut:
    return ReachOut(
        route=route.name,
        audience=audience(route),
        keys=tuple(public_key(key, now) for key in found.keys),
        next=found.next,
        count=found.count,
        looked_at=found.looked_at,
        whole=found.whole,
        tenants=tuple(TenantKeysOut(tenant=tenant, count=count) for tenant, count in found.tenants),
        scopes=tuple(ScopeKeysOut(scope=scope, count=count) for scope, count in found.scopes),
    )


def closed_route_out(closed: ClosedRoute) -> ClosedRouteOut:
    return ClosedRouteOut(
        route=route_out(closed.route),
        missing=tuple(sorted(closed.missing)),
        opened_by=tuple(closed.opened_by),
        bar=closed.bar,
    )


def configuration_out(state: ConfigState) -> ConfigurationOut:
    return ConfigurationOut(
        path=state.path,
        sha256=state.sha256,
        since=_time(state.since),
        needs_restart=tuple(state.needs_restart),
        pending=_pending_out(state),
    )


def _pending_out(state: ConfigState) -> PendingOut | None:
    pending = state.pending
    if pending is None:
        return None
    problems = tuple(ConfigProblemOut(where=one.where, message=one.message) for one in pending.problems)
    return PendingOut(since=_time(pending.since), at=_time(pending.at), problems=problems, total=pending.total)


def _time(seconds: float) -> str:
    return rfc3339(int(seconds * 1_000_000))
