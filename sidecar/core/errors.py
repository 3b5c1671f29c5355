"""Why a request is refused, and the exceptions that carry it up to the gate."""

from enum import StrEnum
from typing import assert_never


class Reason(StrEnum):
    """Closed set of machine codes: error code, metric label and log field at once.

    The first three groups are decisions (`Denied`); the last is what could not be found out (`Fault`).
    """

    BAD_REQUEST = "bad_request"
    BAD_TARGET = "bad_target"
    AMBIGUOUS_TARGET = "ambiguous_target"
    BAD_HEADER = "bad_header"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    UNSUPPORTED_CODING = "unsupported_coding"
    BODY_TOO_LARGE = "body_too_large"
    HEADERS_TOO_LARGE = "headers_too_large"

    MISSING_CREDENTIAL = "missing_credential"
    MALFORMED_CREDENTIAL = "malformed_credential"
    INVALID_KEY = "invalid_key"
    EXPIRED_KEY = "expired_key"
    DISABLED_KEY = "disabled_key"
    REVOKED_KEY = "revoked_key"
    RETIRED_KEY = "retired_key"

    NO_ROUTE = "no_route"
    INSUFFICIENT_SCOPE = "insufficient_scope"
    WRONG_TENANT = "wrong_tenant"
    WRONG_ENVIRONMENT = "wrong_environment"
    QUOTA_EXCEEDED = "quota_exceeded"
    TOO_MANY_FAILURES = "too_many_failures"

    STORE_UNAVAILABLE = "store_unavailable"
    LIMITER_UNAVAILABLE = "limiter_unavailable"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_INVALID = "upstream_invalid"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_BUSY = "upstream_busy"
    LOOP_DETECTED = "loop_detected"
    INTERNAL = "internal"

    # Enum's own is written in Python, and reasons are looked up several times for each refusal.
    __hash__ = str.__hash__


class Denied(Exception):
    """A rule refuses the request. Only the gate catches it."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Fault(Exception):
    """We could not find out (store, limiter or upstream failed). Never the same as a refusal."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def status_of(reason: Reason) -> int:
    """The HTTP status that answers `reason` unless the configuration says otherwise."""
    match reason:
        case Reason.BAD_REQUEST | Reason.BAD_TARGET | Reason.AMBIGUOUS_TARGET | Reason.BAD_HEADER:
            return 400
        case Reason.MISSING_CREDENTIAL | Reason.MALFORMED_CREDENTIAL | Reason.INVALID_KEY:
            return 401
        case Reason.EXPIRED_KEY | Reason.DISABLED_KEY | Reason.REVOKED_KEY | Reason.RETIRED_KEY:
            return 401
        case Reason.NO_ROUTE | Reason.INSUFFICIENT_SCOPE | Reason.WRONG_TENANT | Reason.WRONG_ENVIRONMENT:
            return 403
        case Reason.METHOD_NOT_ALLOWED:
            return 405
        case Reason.REQUEST_TIMEOUT:
            return 408
        case Reason.BODY_TOO_LARGE:
            return 413
        case Reason.QUOTA_EXCEEDED | Reason.TOO_MANY_FAILURES:
            return 429
        case Reason.HEADERS_TOO_LARGE:
            return 431
        case Reason.INTERNAL:
            return 500
        case Reason.UNSUPPORTED_CODING:
            return 501
        case Reason.UPSTREAM_UNREACHABLE | Reason.UPSTREAM_INVALID:
            return 502
        case Reason.STORE_UNAVAILABLE | Reason.LIMITER_UNAVAILABLE | Reason.UPSTREAM_BUSY:
            return 503
        case Reason.UPSTREAM_TIMEOUT:
            return 504
        case Reason.LOOP_DETECTED:
            return 508
        case _:
            assert_never(reason)
