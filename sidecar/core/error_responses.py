"""The sidecar's own responses: for denials, for faults, and for routes that it answers itself (`respond`)."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from math import ceil

from msgspec.structs import replace

from sidecar.core.errors import Reason, status_of
from sidecar.core.model import (
    Allow,
    ApiKey,
    Deny,
    Headers,
    Policy,
    Principal,
    QuotaState,
    Response,
    Source,
    StaticResponse,
)
from sidecar.core.policy import missing_in_words
from sidecar.core.quotas import ending_fields
from sidecar.core.routing import NEVER_ROUTED, STANDARD_METHODS
from sidecar.core.templates import EVERY_QUOTA, placeholders, render
from sidecar.core.units import rfc3339

_NO_STORE = (b"Cache-Control", b"no-store")
_JSON = (b"Content-Type", b"application/json")
_PROBLEM = (b"Content-Type", b"application/problem+json")
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_RETRY_SOON = (b"Retry-After", b"1")
_NO_POLICY = Policy()

SHOWN_AS_INVALID_KEY = frozenset(
    {
        Reason.MALFORMED_CREDENTIAL,
        Reason.EXPIRED_KEY,
        Reason.DISABLED_KEY,
        Reason.REVOKED_KEY,
        Reason.RETIRED_KEY,
    }
)
"""Reasons that look like an unknown key to the client, unless the configuration gives them their own bodies."""

_DETAIL: Mapping[Reason, str] = {
    Reason.BAD_REQUEST: "The request is malformed.",
    Reason.BAD_TARGET: "The request target is malformed.",
    Reason.AMBIGUOUS_TARGET: "The request target can be read in more than one way. Send the path in its normal form.",
    Reason.BAD_HEADER: "A header field is malformed.",
    Reason.METHOD_NOT_ALLOWED: "The method is not allowed here.",
    Reason.REQUEST_TIMEOUT: "The request did not arrive in time.",
    Reason.UNSUPPORTED_CODING: "The request body has a transfer coding other than chunked.",
    Reason.BODY_TOO_LARGE: "The request body is too large.",
    Reason.HEADERS_TOO_LARGE: "The header fields or the request line are too large.",
    Reason.MISSING_CREDENTIAL: "An API key is required.",
    Reason.INVALID_KEY: "The API key is not valid.",
    Reason.NO_ROUTE: "The API key gives no access to this resource.",
    Reason.INSUFFICIENT_SCOPE: "The API key lacks a scope that this operation requires.",
    Reason.WRONG_TENANT: "The API key gives no access to this resource.",
    Reason.WRONG_ENVIRONMENT: "The API key belongs to another environment.",
    Reason.KEY_NOT_ACCEPTED: "API keys are not accepted here.",
    Reason.QUOTA_EXCEEDED: "The quota is used up.",
    Reason.TOO_MANY_FAILURES: "Too many requests with wrong API keys.",
    Reason.STORE_UNAVAILABLE: "API keys cannot be verified at the moment.",
    Reason.LIMITER_UNAVAILABLE: "Quotas cannot be verified at the moment.",
    Reason.UPSTREAM_UNREACHABLE: "The service cannot be reached.",
    Reason.UPSTREAM_INVALID: "The service gave an invalid response.",
    Reason.UPSTREAM_TIMEOUT: "The service did not respond in time.",
    Reason.UPSTREAM_BUSY: "The service has no room for the request at the moment.",
    Reason.LOOP_DETECTED: "The request has already passed through here.",
    Reason.INTERNAL: "An internal error occurred.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorTemplate:
    """The configuration of an error response. None is the default; `body` is JSON with placeholders."""

    status: int | None = None
    headers: Mapping[str, str] | None = None
    body: object = None
    detail: bool = False
    """Whether a valid key learns which scopes are missing, or which quota is exhausted."""


def _allow(methods: Iterable[str]) -> tuple[bytes, bytes]:
    return (b"Allow", ", ".join(methods).encode())


_ALLOW = _allow(name for name in STANDARD_METHODS if name not in NEVER_ROUTED)


class ErrorResponses:
    """Renders error responses as configured; by default as problem details (RFC 9457) with a challenge (RFC 6750)."""

    def __init__(
        self,
        errors: Mapping[Reason, ErrorTemplate],
        default: ErrorTemplate | None,
        *,
        realm: str,
        sources: Iterable[Source],
        rate_limits: Callable[..., Headers],
    ) -> None:
        """rate_limits: states and `now` (Unix seconds) to header fields."""
        self._rate_limits = rate_limits
        plain = default or ErrorTemplate()
        self._forms = {reason: errors.get(reason, plain) for reason in Reason}
        self._challenge = _challenge(realm, sources)
        self._fixed: dict[Reason, Response] = {}
        self._fixed = {reason: self.for_reason(reason) for reason in Reason if self._is_fixed(reason)}

    def denied(self, deny: Deny, now: float) -> Response:
        """The response for a Deny, with what is left of the key's quotas. now: Unix seconds."""
        extra = self.client_headers(deny.principal, deny.quota_states, now)
        if deny.refused_quota is not None and deny.refused_quota not in deny.quota_states:
            extra = (*extra, (b"Retry-After", str(max(1, deny.refused_quota.retry_after_seconds)).encode()))
        fixed = self._fixed.get(deny.reason)
        if fixed is not None and not deny.methods:
            return _extended(fixed, extra)
        policy = deny.route.policy if deny.route else _NO_POLICY
        required = () if policy.deny else policy.any_scopes | policy.all_scopes
        quota = deny.refused_quota or tightest(deny.quota_states)
        detail = specific_detail(deny) if self._forms[deny.reason].detail else None
        return self.for_reason(
            deny.reason, required=required, quota=quota, extra=extra, methods=deny.methods, detail=detail
        )

    def fault(self, reason: Reason, allow: Allow, now: float) -> Response:
        """The response for an allowed request that could not be forwarded, or that got no response."""
        extra = self.client_headers(allow.principal, allow.quota_states, now)
        return self.for_reason(reason, quota=tightest(allow.quota_states), extra=extra)

    def static_response(self, allow: Allow, response: StaticResponse, now: float) -> Response:
        """The response of a route that the sidecar answers itself."""
        values: dict[str, object] = quota_values(tightest(allow.quota_states))
        if allow.principal is not None:
            values |= key_values(allow.principal.key)
        if response.tells_quotas:
            values[EVERY_QUOTA] = _every_quota((*allow.quotas_left, *allow.quota_states))
        body = response.body if isinstance(response.body, bytes) else encode_json(render(response.body, values))
        extra = self.client_headers(allow.principal, allow.quota_states, now)
        return Response(status=response.status, headers=(*response.headers, *extra), body=body)

    def client_headers(self, principal: Principal | None, states: Sequence[QuotaState], now: float) -> Headers:
        """Fields of every response to a key: what is left of its quotas and, if it was replaced, when it ends."""
        fields = self._rate_limits(states, now=now) if states else ()
        if principal is not None and principal.key.replaced_at is not None:
            return (*fields, *ending_fields(principal.key))
        return fields

    def for_reason(
        self,
        reason: Reason,
        *,
        required: Iterable[str] = (),
        quota: QuotaState | None = None,
        extra: Headers = (),
        methods: Sequence[str] = (),
        detail: str | None = None,
    ) -> Response:
        """required: the route's scopes. quota: the one that refused, or the tightest. extra: appended fields.

        detail: replaces the general sentence.
        methods: those of the path, for a 405 (RFC 9110 section 15.5.6) instead of the status of `reason`.
        """
        fixed = self._fixed.get(reason)
        if fixed is not None and not methods:
            return _extended(fixed, extra)
        form = self._forms[reason]
        status = self.status_of(reason, methods)
        scopes = sorted(required)
        detail = detail or _DETAIL[_shown_reason(Reason.METHOD_NOT_ALLOWED if methods else reason)]
        if form.body is None:
            kind, body = _PROBLEM, _problem(reason, status, detail)
        else:
            values = {"reason": str(reason), "status": status, "detail": detail, "scopes.required": scopes}
            kind, body = _JSON, render(form.body, values | quota_values(quota))
        configured = tuple((name.encode(), value.encode()) for name, value in (form.headers or {}).items())
        own = (_allow(methods),) if methods else self._own_headers(reason, status, scopes)
        headers = (kind, _NO_STORE, *own, *configured, *extra)
        return Response(status=status, headers=headers, body=encode_json(body))

    def status_of(self, reason: Reason, methods: Sequence[str] = ()) -> int:
        """The status of the response for `reason`; `methods` as in `for_reason`."""
        return status_of(Reason.METHOD_NOT_ALLOWED) if methods else self._forms[reason].status or status_of(reason)

    def _is_fixed(self, reason: Reason) -> bool:
        """Whether every response for `reason` is the same, except for appended fields."""
        form = self._forms[reason]
        varying = set(placeholders(form.body)) - {"reason", "status", "detail"}
        return reason is not Reason.INSUFFICIENT_SCOPE and not varying and not form.detail

    def _own_headers(self, reason: Reason, status: int, scopes: list[str]) -> Headers:
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            return (_ALLOW,)
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            return (_RETRY_SOON,)
        challenge = self._challenge
        if reason is Reason.INSUFFICIENT_SCOPE:
            return (
                (b"WWW-Authenticate", f'{challenge}, error="insufficient_scope", scope="{" ".join(scopes)}"'.encode()),
            )
        if status != HTTPStatus.UNAUTHORIZED:
            return ()
        if reason is not Reason.MISSING_CREDENTIAL:
            challenge += ', error="invalid_token"'
        return ((b"WWW-Authenticate", challenge.encode()),)


def _extended(response: Response, extra: Headers) -> Response:
    return replace(response, headers=(*response.headers, *extra)) if extra else response


def key_values(key: ApiKey) -> dict[str, object]:
    """Placeholder names to their values for a key."""
    return {
        "key.id": key.id,
        "key.name": key.name,
        "key.prefix": key.prefix,
        "key.tenant": key.tenant,
        "key.environment": key.environment,
        "key.scopes": list(key.scopes),
        "key.plan": key.plan,
        "key.expires_at": rfc3339(key.expires_at),
        "key.replaced_at": rfc3339(key.replaced_at),
        "key.retires_at": rfc3339(key.retires_at),
        **{f"key.metadata.{name}": value for name, value in key.metadata.items()},
    }


def quota_values(state: QuotaState | None) -> dict[str, object]:
    """Placeholder names to their values for a quota."""
    if state is None:
        return {}
    return {
        "quota.name": state.quota.name,
        "quota.limit": state.limit,
        "quota.used": state.used,
        "quota.remaining": state.remaining,
        "quota.reset": ceil(state.resets_at),
        "quota.reset_at": rfc3339(ceil(state.resets_at) * 1_000_000),
        "quota.retry_after": state.retry_after_seconds,
    }


def _every_quota(states: Iterable[QuotaState]) -> list[dict[str, object]]:
    """One object per quota; the first of two states of the same quota."""
    found: dict[str, QuotaState] = {}
    for state in states:
        found.setdefault(state.quota.name, state)
    return [
        {
            "name": name,
            "limit": state.limit,
            "remaining": state.remaining,
            "resets_at": rfc3339(ceil(state.resets_at) * 1_000_000),
        }
        for name, state in found.items()
    ]


def tightest(states: Iterable[QuotaState]) -> QuotaState | None:
    """The state with the least left; of several, the one with the lowest limit."""
    return min(states, key=lambda state: (state.remaining, state.limit), default=None)


def encode_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _problem(reason: Reason, status: int, detail: str) -> dict[str, object]:
    title = _PHRASES.get(status, "Refused")
    return {
        "type": "about:blank",
        "title": title,
        "status": status,
        "code": str(_shown_reason(reason)),
        "detail": detail,
    }


def _shown_reason(reason: Reason) -> Reason:
    """The details that the client may learn."""
    return Reason.INVALID_KEY if reason in SHOWN_AS_INVALID_KEY else reason


def specific_detail(deny: Deny) -> str | None:
    """What is missing or exhausted, for the holder of a valid key; None if there is nothing to add."""
    if deny.principal is None or deny.route is None:
        return None
    if deny.reason is Reason.QUOTA_EXCEEDED and deny.refused_quota is not None:
        state = deny.refused_quota
        until = rfc3339(ceil(state.resets_at) * 1_000_000)
        return f"The quota {state.quota.name} of {state.limit} is used up. It is fully available again at {until}."
    if deny.reason is Reason.INSUFFICIENT_SCOPE:
        missing = missing_in_words(deny.route.policy, deny.principal.scopes)
        return f"The API key lacks a scope that this operation requires: {missing}." if missing else None
    return None


DETAILED = (Reason.INSUFFICIENT_SCOPE, Reason.QUOTA_EXCEEDED)
"""Reasons for which `specific_detail` may have more to say."""


def _challenge(realm: str, sources: Iterable[Source]) -> str:
    schemes = [source.scheme for source in sources if source.scheme]
    quoted = realm.replace("\\", "\\\\").replace('"', '\\"')
    return f'{schemes[0] if schemes else "ApiKey"} realm="{quoted}"'
