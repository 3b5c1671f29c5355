"""A finished request as spans, following OpenTelemetry's semantic conventions for HTTP (1.23 and later).

Of the headers only Host and User-Agent are used. No value of a query is included, and nothing that begins like a key.
The method is a known one or `_OTHER`: clients may send any text.
"""

from typing import Final, Literal

from msgspec import Struct

from sidecar.core.errors import Denied
from sidecar.core.headers import check_host
from sidecar.core.model import Allow, Decision, RequestHead
from sidecar.core.observer import CLIENT_CLOSED_REQUEST, Forwarding, Trace
from sidecar.core.routing import STANDARD_METHODS
from sidecar.telemetry.access_log import Access, well_formed
from sidecar.telemetry.redaction import Redaction

Attributes = dict[str, str | int]

_METHODS: Final = frozenset(STANDARD_METHODS)
_MAX_PATH: Final = 1024
_MAX_AGENT: Final = 256
_MAX_ID: Final = 128
_MAX_HOST: Final = 255
_MAX_STATE: Final = 512
_CLIENT_GONE: Final = "client_gone"


class Span(Struct, frozen=True, kw_only=True, gc=False):
    """The span of one request, or of one request to the upstream. Times in ns since 1970."""

    name: str
    kind: Literal["server", "client"]
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    began: int
    ended: int
    attributes: Attributes
    failed: bool


class Spans:
    """Makes spans. redaction: removes secrets."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction

    def server(self, trace: Trace, access: Access, head: RequestHead, decision: Decision | None) -> Span:
        """The request as the client sees it. `access.reason` is one of Reason."""
        method, route = _method(access.method), _route(decision)
        attributes: Attributes = {
            "http.request.method": method,
            "url.scheme": head.scheme,
            "url.path": self._path(access.target),
            "network.protocol.name": "http",
            "network.protocol.version": f"{head.version[0]}.{head.version[1]}",
            "client.address": access.client_address,
            "http.request.body.size": access.bytes_in,
            "http.response.body.size": access.bytes_out,
            "sidecar.decision": _word(decision),
            "sidecar.request_id": self._redaction.text(access.request_id, longest=_MAX_ID),
            **self._address(_host(head, decision).decode("ascii")),
            **_optional("http.route", route),
            **_optional("network.peer.address", head.peer),
            **_optional("user_agent.original", self._agent(head)),
            **_optional("sidecar.reason", access.reason or ""),
            **_optional("sidecar.cause", access.cause or ""),
            **_optional("sidecar.would_deny", access.would_deny or ""),
            **_optional("sidecar.key.id", access.key.id if access.key else ""),
            **_optional("sidecar.key.tenant", (access.key.tenant or "") if access.key else ""),
        }
        error = _server_error(access)
        if error != _CLIENT_GONE:
            attributes["http.response.status_code"] = access.status
        return Span(
            name=f"{_named(method)} {route}" if route else _named(method),
            kind="server",
            trace_id=trace.trace_id,
            span_id=trace.span_id,
            parent_id=trace.parent_id,
            state=self._redaction.text(trace.state, longest=_MAX_STATE),
            began=_ns(access.at),
            ended=_ns(access.at + access.seconds),
            attributes={**attributes, **_optional("error.type", error)},
            failed=error != "" and error != _CLIENT_GONE,
        )

    def client(self, forwarding: Forwarding, access: Access, allow: Allow) -> Span:
        """The request as the upstream sees it, from when it was sent to the end of the response."""
        trace, upstream, sent = forwarding.trace, forwarding.upstream, forwarding.sent
        method, path = _method(access.method), self._path(allow.target)
        attributes: Attributes = {
            "http.request.method": method,
            "server.address": upstream.host,
            "network.protocol.name": "http",
            "network.protocol.version": "1.1",
        }
        if upstream.port:
            attributes["server.port"] = upstream.port
            attributes["url.full"] = f"{upstream.scheme}://{_bracketed(upstream.host)}:{upstream.port}{path}"
        else:
            attributes |= {"network.transport": "unix", "url.path": path}
        error = _client_error(access)
        if access.upstream_seconds is not None and access.reason is None:
            attributes["http.response.status_code"] = access.status
        return Span(
            name=_named(method),
            kind="client",
            trace_id=trace.trace_id,
            span_id=trace.client_span_id,
            parent_id=trace.span_id,
            state=self._redaction.text(trace.state, longest=_MAX_STATE),
            began=_ns(sent),
            ended=max(_ns(sent), _ns(access.at + access.seconds)),
            attributes={
                **attributes,
                **_optional("error.type", error),
                **_optional("sidecar.cause", access.cause or ""),
            },
            failed=error != "" and error != _CLIENT_GONE,
        )

    def _address(self, host: str) -> Attributes:
        name, colon, port = host.rpartition(":")
        if not colon or port.endswith("]"):
            return _optional("server.address", self._redaction.text(host.strip("[]"), longest=_MAX_HOST))
        return {"server.address": self._redaction.text(name.strip("[]"), longest=_MAX_HOST), "server.port": int(port)}

    def _path(self, target: str) -> str:
        """The path of an origin form or absolute form; undecodable bytes as `\\xff`."""
        if not target.startswith("/"):
            _, slashes, rest = target.partition("://")
            target = f"/{rest.partition('/')[2]}" if slashes else target
        return well_formed(self._redaction.path(target, longest=_MAX_PATH))

    def _agent(self, head: RequestHead) -> str:
        value = next((value for name, value in head.headers if name.lower() == b"user-agent"), b"")
        return well_formed(self._redaction.text(value.decode("latin-1"), longest=_MAX_AGENT))


def _server_error(access: Access) -> str:
    """Empty if the server worked as intended; a refusal is not an error."""
    if _hung_up(access):
        return _CLIENT_GONE
    if access.reason is not None and (access.status >= 500 or access.status < 400):
        return access.reason
    return str(access.status) if access.status >= 500 else ""


def _client_error(access: Access) -> str:
    if _hung_up(access):
        return _CLIENT_GONE
    if access.reason is not None:
        return access.reason
    return str(access.status) if access.status >= 400 else ""


def _hung_up(access: Access) -> bool:
    return access.status == CLIENT_CLOSED_REQUEST and access.reason is None and access.upstream_seconds is None


def _word(decision: Decision | None) -> str:
    if decision is None:
        return "none"
    return "allow" if isinstance(decision, Allow) else "deny"


def _route(decision: Decision | None) -> str:
    return decision.route.pattern if decision is not None and decision.route is not None else ""


def _method(method: str) -> str:
    return method if method in _METHODS else "_OTHER"


def _named(method: str) -> str:
    return "HTTP" if method == "_OTHER" else method


def _host(head: RequestHead, decision: Decision | None) -> bytes:
    """The Host that was decided on, or a well-formed one."""
    if isinstance(decision, Allow):
        return decision.host
    try:
        return check_host([value for name, value in head.headers if name.lower() == b"host"] or None, head.version)
    except Denied:
        return b""


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _optional(name: str, value: str) -> Attributes:
    return {name: value} if value else {}


def _ns(seconds: float) -> int:
    return int(seconds * 1_000_000_000)
