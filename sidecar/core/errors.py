"""Why a request is refused, and the exceptions that carry the reason to the gate."""

from enum import StrEnum
from typing import assert_never


class Reason(StrEnum):
    """Closed set of machine codes, used as error code, metric label and log field.

    The first three groups are decisions (`Denied`); in the last, no decision was possible (`Fault`).
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
    KEY_NOT_ACCEPTED = "key_not_accepted"
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


class UpstreamCause(StrEnum):
    """Closed set of upstream problems, for the operator only: log field, metric label, trace attribute.

    The groups are those of `reason_of`: unreachable, invalid response, timeout.
    """

    DNS = "dns"
    REFUSED = "refused"
    NO_ROUTE = "no_route"
    NO_SOCKET = "no_socket"
    PERMISSION_DENIED = "permission_denied"
    NO_LOCAL_PORT = "no_local_port"
    OPEN_FILES = "open_files"
    TLS_EXPIRED = "tls_expired"
    TLS_NOT_YET_VALID = "tls_not_yet_valid"
    TLS_HOSTNAME_MISMATCH = "tls_hostname_mismatch"
    TLS_UNKNOWN_ISSUER = "tls_unknown_issuer"
    TLS_CERTIFICATE = "tls_certificate"
    TLS_CLIENT_CERTIFICATE = "tls_client_certificate"
    TLS_PROTOCOL = "tls_protocol"
    RESET = "reset"
    CLOSED = "closed"
    IDLE_CLOSED = "idle_closed"
    BODY_CUT = "body_cut"
    OTHER = "other"

    NOT_HTTP = "not_http"
    HTTP_VERSION = "http_version"
    BAD_STATUS = "bad_status"
    BAD_HEADER = "bad_header"
    HEAD_CUT = "head_cut"
    HEAD_TOO_LARGE = "head_too_large"
    BAD_LENGTH = "bad_length"
    TWO_LENGTHS = "two_lengths"
    TRANSFER_CODING = "transfer_coding"
    BAD_CHUNK = "bad_chunk"
    UNEXPECTED_UPGRADE = "unexpected_upgrade"

    CONNECT = "connect"
    REQUEST_BODY = "request_body"
    RESPONSE_HEAD = "response_head"


class Denied(Exception):
    """A rule refuses the request. Only the gate catches it."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Fault(Exception):
    """No decision was possible (store, limiter or upstream failed). Never the same as a refusal."""

    def __init__(self, reason: Reason, cause: UpstreamCause | None = None) -> None:
        """cause: if the upstream failed; see `upstream_fault`."""
        super().__init__(reason)
        self.reason, self.cause = reason, cause


_INVALID = frozenset(
    {
        UpstreamCause.NOT_HTTP,
        UpstreamCause.HTTP_VERSION,
        UpstreamCause.BAD_STATUS,
        UpstreamCause.BAD_HEADER,
        UpstreamCause.HEAD_CUT,
        UpstreamCause.HEAD_TOO_LARGE,
        UpstreamCause.BAD_LENGTH,
        UpstreamCause.TWO_LENGTHS,
        UpstreamCause.TRANSFER_CODING,
        UpstreamCause.BAD_CHUNK,
        UpstreamCause.UNEXPECTED_UPGRADE,
    }
)
_TIMEOUTS = frozenset({UpstreamCause.CONNECT, UpstreamCause.REQUEST_BODY, UpstreamCause.RESPONSE_HEAD})


def reason_of(cause: UpstreamCause) -> Reason:
    """The reason that the client gets if the upstream failed with `cause`."""
    if cause in _INVALID:
        return Reason.UPSTREAM_INVALID
    return Reason.UPSTREAM_TIMEOUT if cause in _TIMEOUTS else Reason.UPSTREAM_UNREACHABLE


def upstream_fault(cause: UpstreamCause) -> Fault:
    return Fault(reason_of(cause), cause)


def status_of(reason: Reason) -> int:
    """The HTTP status for `reason`, unless the configuration overrides it."""
    match reason:
        case Reason.BAD_REQUEST | Reason.BAD_TARGET | Reason.AMBIGUOUS_TARGET | Reason.BAD_HEADER:
            return 400
        case Reason.MISSING_CREDENTIAL | Reason.MALFORMED_CREDENTIAL | Reason.INVALID_KEY:
            return 401
        case Reason.EXPIRED_KEY | Reason.DISABLED_KEY | Reason.REVOKED_KEY | Reason.RETIRED_KEY:
            return 401
        case Reason.NO_ROUTE | Reason.INSUFFICIENT_SCOPE | Reason.WRONG_TENANT | Reason.WRONG_ENVIRONMENT:
            return 403
        case Reason.KEY_NOT_ACCEPTED:
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
