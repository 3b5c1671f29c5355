"""What the upstream is told of the caller and of the way that the request came."""

from collections.abc import Mapping, Sequence

from sidecar.core.error_responses import key_values
from sidecar.core.headers import field_value
from sidecar.core.model import ApiKey, Headers
from sidecar.core.templates import render_text


class IdentityHeaders:
    """Header templates, compiled: those that depend on the key alone are rendered once for a key."""

    def __init__(self, templates: Mapping[str, str]) -> None:
        by_request = {name for name, template in templates.items() if "{request.id}" in template}
        self._by_key = [(name.encode(), template) for name, template in templates.items() if name not in by_request]
        self._by_request = [(name.encode(), template) for name, template in templates.items() if name in by_request]

    def of_key(self, key: ApiKey) -> Headers:
        values = key_values(key)
        return tuple((name, field_value(render_text(template, values))) for name, template in self._by_key)

    def of_request(self, key: ApiKey, request_id: str) -> Headers:
        if not self._by_request:
            return ()
        values = {**key_values(key), "request.id": request_id}
        return tuple((name, field_value(render_text(template, values))) for name, template in self._by_request)


def forwarding_headers(peer: str, scheme: str, host: bytes) -> Headers:
    """What the socket tells, for a client that no trusted proxy stands for."""
    address = ((b"X-Forwarded-For", peer.encode()),) if peer else ()
    named = ((b"X-Forwarded-Host", host),) if host else ()
    return (*address, (b"X-Forwarded-Proto", scheme.encode()), *named)


def forwarded_header(peer: str, scheme: str, host: bytes) -> bytes:
    """One element of a Forwarded field (RFC 7239)."""
    node = f'"[{peer}]"' if ":" in peer else peer or "unknown"
    return f'for={node};proto={scheme};host="{host.decode()}"'.encode()


def appended(headers: Sequence[tuple[bytes, bytes]], name: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    """`headers` with `value` at the end of the list that `name`'s lines make up together."""
    before = [line for field, line in headers if field.lower() == name.lower()]
    others = [pair for pair in headers if pair[0].lower() != name.lower()]
    return [*others, (name, b", ".join([*before, value]))]
