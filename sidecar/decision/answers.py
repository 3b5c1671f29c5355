"""The gate's decision, worded for a dialect."""

from sidecar.core.model import Answer, Headers
from sidecar.forward_auth.dialects import Dialect

_NO_STORE = (b"Cache-Control", b"no-store")


def allowing(dialect: Dialect, told: Headers, ours: Headers, *, without: bytes) -> Answer:
    """told: for the upstream. ours: for the client. without: names of what the upstream is not to see."""
    removed = ((b"X-Envoy-Auth-Headers-To-Remove", without),) if dialect.removes_named and without else ()
    return Answer(status=200, headers=(_NO_STORE, *told, *ours, *removed), body=b"")


def refusing(dialect: Dialect, refusal: Answer) -> Answer:
    """The refusal itself; for nginx as one of the two that it knows, with what it really is in header fields."""
    if not dialect.knows_two_refusals:
        return refusal
    really = ((b"X-Auth-Status", str(refusal.status).encode()), (b"X-Auth-Body", refusal.body))
    status = 401 if refusal.status == 401 else 403
    return Answer(status=status, headers=(*refusal.headers, *really), body=refusal.body)
