"""The target and header fields for the upstream, made from the client's."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from sidecar.core.client_address import TrustedProxies
from sidecar.core.credentials import (
    Copies,
    Credential,
    without_cookie,
    without_cookie_like,
    without_item,
    without_parameter,
)
from sidecar.core.error_responses import key_values
from sidecar.core.errors import Denied, Fault, Reason
from sidecar.core.headers import HeaderRules, SortedHeaders, drop_connection_options, field_value
from sidecar.core.model import ApiKey, ForwardRules, Headers, RequestHead
from sidecar.core.observer import Trace
from sidecar.core.target import Target, with_prefix
from sidecar.core.templates import render_text

# What the upstream learns about the caller and the path of the request.


class IdentityHeaders:
    """Compiled header templates: those that depend only on the key are rendered once per key."""

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


_LONGEST_HOST = 300
"""A DNS name has at most 253 bytes; clients can send longer ones, and caching them takes our memory."""


def forwarding_headers(peer: str, scheme: str, host: bytes) -> Headers:
    """The fields that describe the socket, for a client without a trusted proxy."""
    return (_known_forwarding if len(host) <= _LONGEST_HOST else _forwarding)(peer, scheme, host)


def _forwarding(peer: str, scheme: str, host: bytes) -> Headers:
    address = ((b"X-Forwarded-For", peer.encode()),) if peer else ()
    named = ((b"X-Forwarded-Host", host),) if host else ()
    return (*address, (b"X-Forwarded-Proto", scheme.encode()), *named)


_known_forwarding = lru_cache(maxsize=4096)(_forwarding)


def forwarded_header(peer: str, scheme: str, host: bytes) -> bytes:
    """One element of a Forwarded field (RFC 7239)."""
    node = f'"[{peer}]"' if ":" in peer else peer or "unknown"
    return f'for={node};proto={scheme};host="{host.decode()}"'.encode()


def appended(headers: Sequence[tuple[bytes, bytes]], name: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    """`headers` with `value` appended to the list in the lines of `name`."""
    before = [line for field, line in headers if field.lower() == name.lower()]
    others = [pair for pair in headers if pair[0].lower() != name.lower()]
    return [*others, (name, b", ".join([*before, value]))]


VIA: Final = b"Via"


def via(headers: Iterable[tuple[bytes, bytes]], version: str, name: bytes) -> bytes:
    """The Via of a message received with HTTP `version`, with `name` as its last hop (RFC 9110 section 7.6.3)."""
    before = [value for field, value in headers if field.lower() == b"via"]
    return b", ".join([*before, b"%b %b" % (version.encode(), name)])


def with_via(headers: Headers, version: str, name: bytes) -> Headers:
    """The request's `headers` with `name` in Via. Raises Fault (LOOP_DETECTED) if it already passed `name`."""
    here = via(headers, version, name)
    hops = [hop.split(None, 2)[1:2] for hop in here.lower().split(b",")]
    if hops.count([name.lower()]) > 1:
        raise Fault(Reason.LOOP_DETECTED)
    return (*[pair for pair in headers if pair[0].lower() != b"via"], (VIA, here))


ADMIN_COOKIE: Final = "sidecar_session"
"""The session of the admin page. Browsers send a host's cookies to all its ports, including the data listener's."""
ADMIN_COOKIES: Final = (ADMIN_COOKIE, f"__Host-{ADMIN_COOKIE}")
"""Its names, over HTTP and over HTTPS: no other host can set one that begins with `__Host-` (RFC 6265bis §4.1.3.2)."""


_FORWARD_RULES: Final = ForwardRules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """The configured rules of strip and inject.

    named_prefixes: of upstreams that routes name, what is stripped and what is added. keep_slash: how paths are read.
    remove_copies: removes copies of the credential elsewhere in the request; otherwise the request is refused.
    withheld_cookies: names of the sidecar's own cookies. not_beside_key: names of headers, in lower case, and of
    cookies with credentials that are not ours, which are removed if a key is used.
    """

    rules: HeaderRules
    proxies: TrustedProxies
    forward_credential: bool
    strip_prefix: str
    add_prefix: str
    named_prefixes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    keep_slash: bool = False
    remove_copies: bool = True
    withheld_cookies: tuple[str, ...] = ()
    not_beside_key: tuple[frozenset[bytes], tuple[str, ...]] = (frozenset(), ())

    def target(
        self,
        target: Target,
        paths: tuple[str, ...],
        credential: Credential | None,
        copies: Copies | None = None,
        rules: ForwardRules = _FORWARD_RULES,
    ) -> str:
        """The request-target, without a key in its query. Raises Denied if the prefix cannot be removed safely.

        rules: of the route that `paths` lead to.
        """
        if target.query is not None and not self.forward_credential:
            target = _without_key(target, credential)
            if copies is not None and target.query is not None:
                query = copies.removed_from_query(target.query)
                target = target if query == target.query else Target(path=target.path, query=query or None)
        strip, add = self.prefixes(rules)
        return with_prefix(target, paths, strip, add, keep_slash=self.keep_slash)

    def prefixes(self, rules: ForwardRules) -> tuple[str, str]:
        """What is removed from the front of the path, and what is put before the rest."""
        strip, add = self.strip_prefix, self.add_prefix
        if rules.upstream is not None:
            strip, add = self.named_prefixes[rules.upstream]
        return strip if rules.strip_prefix is None else rules.strip_prefix, add

    def copies(self, credential: Credential | None) -> Copies | None:
        """Copies of a credential that the upstream must not see."""
        if credential is None or credential.foreign or self.forward_credential or not credential.text:
            return None
        return Copies(credential.text)

    def check_copies(
        self,
        target: Target,
        received: SortedHeaders,
        credential: Credential,
        copies: Copies,
        *,
        host: bytes,
        remove: bool,
    ) -> None:
        """Raises Denied where the credential stands where it cannot, or may not, be removed."""
        if any(map(copies.are_in, (host, *received.fields.get(b"upgrade", ())))):
            raise Denied(Reason.BAD_HEADER)
        if remove and self.remove_copies:
            return
        query, kept = _without_key(target, credential).query or "", _without_cookies(received.kept, credential.cookies)
        if remove:
            kept = _without_items(kept, credential)
        if (
            copies.are_in_text(target.path)
            or copies.removed_from(kept) != kept
            or copies.removed_from_query(query) != query
        ):
            raise Denied(Reason.BAD_HEADER)

    def check_beside_key(self, received: SortedHeaders) -> None:
        """For proxies that forward by themselves.

        Raises Denied if another credential would be sent along with the key.
        """
        if self._of_key(received.kept) != received.kept:
            raise Denied(Reason.BAD_HEADER)

    def headers(
        self,
        head: RequestHead,
        received: SortedHeaders,
        credential: Credential | None,
        copies: Copies | None,
        host: bytes,
        identity: Headers,
    ) -> Headers:
        """Stripped, then injected: forwarding fields, then `identity`, which the client cannot influence."""
        trusted = self.proxies.trusts(head.peer)
        keep_credential = credential is not None and (credential.foreign or self.forward_credential)
        kept = received.kept
        if trusted or keep_credential:
            kept = self.rules.reclassify(head.headers, credential=keep_credential, from_proxy=trusted)
        if credential is not None and not keep_credential:
            kept = _without_credential(kept, credential)
        if credential is not None and not credential.foreign:
            kept = self._of_key(kept)
        if copies is not None:
            kept = copies.removed_from(kept)
        kept = self._end_to_end(kept, received)
        return (*self.forwarded(head, kept, host), *identity)

    def reaching(self, head: RequestHead, received: SortedHeaders, *, from_proxy: bool) -> Headers:
        """The client's fields that reach the upstream if none of our keys is among them.

        from_proxy: fields that only a trusted proxy may set are its own, not its client's.
        """
        trusted = from_proxy and self.proxies.trusts(head.peer)
        kept = self.rules.reclassify(head.headers, credential=True, from_proxy=trusted)
        return tuple(self._end_to_end(kept, received))

    def _of_key(self, kept: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Remove another session next to the key: the upstream could choose which of the two to trust."""
        headers, cookies = self.not_beside_key
        if headers:
            kept = [pair for pair in kept if pair[0].lower() not in headers]
        return _without_cookies(kept, cookies, without_cookie_like)

    def _end_to_end(self, kept: list[tuple[bytes, bytes]], received: SortedHeaders) -> list[tuple[bytes, bytes]]:
        if self.withheld_cookies and b"cookie" in received.fields:
            kept = _without_cookies(kept, self.withheld_cookies)
        if connection := received.fields.get(b"connection"):
            kept = drop_connection_options(kept, connection)
        return kept

    def forwarded(self, head: RequestHead, kept: list[tuple[bytes, bytes]], host: bytes) -> list[tuple[bytes, bytes]]:
        """`kept` with forwarding fields; those of a trusted proxy include earlier hops."""
        speaks_forwarded = self.proxies.header == b"forwarded"
        if not self.proxies.trusts(head.peer):
            if speaks_forwarded:
                return [*kept, (b"Forwarded", forwarded_header(head.peer, head.scheme, host))]
            return [*kept, *forwarding_headers(head.peer, head.scheme, host)]
        other = b"x-forwarded-for" if speaks_forwarded else b"forwarded"
        believed = [pair for pair in kept if pair[0].lower() != other]
        if speaks_forwarded:
            return appended(believed, b"Forwarded", forwarded_header(head.peer, head.scheme, host))
        named = {name.lower() for name, _ in believed}
        missing = [pair for pair in forwarding_headers("", head.scheme, host) if pair[0].lower() not in named]
        return [*appended(believed, b"X-Forwarded-For", head.peer.encode()), *missing]


def _without_key(target: Target, credential: Credential | None) -> Target:
    for source in credential.sources if credential else ():
        if source.kind == "query" and target.query is not None:
            target = Target(path=target.path, query=without_parameter(target.query, source.name) or None)
    return target


def _without_credential(kept: list[tuple[bytes, bytes]], credential: Credential) -> list[tuple[bytes, bytes]]:
    """Remove it from among others: in cookies and in lists."""
    return _without_items(_without_cookies(kept, credential.cookies), credential)


def _without_items(kept: list[tuple[bytes, bytes]], credential: Credential) -> list[tuple[bytes, bytes]]:
    names = {source.name.lower().encode() for source in credential.sources if source.in_list}
    if not names:
        return kept
    item = credential.text.encode("latin-1")
    lines = [(name, without_item(value, item) if name.lower() in names else value) for name, value in kept]
    return [(name, value) for name, value in lines if value or name.lower() not in names]


def _without_cookies(
    kept: list[tuple[bytes, bytes]],
    names: Sequence[str],
    without: Callable[[bytes, str], bytes] = without_cookie,
) -> list[tuple[bytes, bytes]]:
    for cookie in names:
        lines = [(name, without(value, cookie) if name.lower() == b"cookie" else value) for name, value in kept]
        kept = [(name, value) for name, value in lines if value or name.lower() != b"cookie"]
    return kept


TRACEPARENT: Final = b"traceparent"
TRACESTATE: Final = b"tracestate"


def propagate(trace: Trace, headers: Headers) -> Headers:
    """`headers` with the trace for the upstream. Its parent is our client span, or the caller's if unsampled."""
    if trace.parent_id and not trace.sampled:
        return headers
    foreign = (TRACEPARENT,) if trace.parent_id else (TRACEPARENT, TRACESTATE)
    parent = f"00-{trace.trace_id}-{trace.client_span_id}-{trace.flags:02x}".encode()
    return (*[pair for pair in headers if pair[0].lower() not in foreign], (TRACEPARENT, parent))


def request_id(values: Mapping[bytes, list[bytes]], header: bytes, keys: re.Pattern[bytes]) -> str | None:
    """The client's request id, if it sent exactly one that is safe to write anywhere. keys: matches keys."""
    found = values.get(header)
    return found[0].decode("ascii") if found is not None and len(found) == 1 and is_request_id(found[0], keys) else None


def is_request_id(value: bytes, keys: re.Pattern[bytes]) -> bool:
    """Whether it is safe to write anywhere. keys: matches keys."""
    return 0 < len(value) <= 128 and value.translate(None, _ID_BYTES) == b"" and keys.search(value) is None


class RequestIds:
    """Makes request ids: 32 hexadecimal digits of `random_bytes`, which is called for many ids at once."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._ready: list[str] = []

    def __call__(self) -> str:
        if not self._ready:
            digits = self._random_bytes(_ID_BATCH * _ID_DIGITS // 2).hex()
            self._ready = [digits[at : at + _ID_DIGITS] for at in range(0, len(digits), _ID_DIGITS)]
        return self._ready.pop()


_ID_BATCH = 64
_ID_DIGITS = 32
_ID_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/=:"
