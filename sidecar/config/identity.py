"""The `identity` section: what the upstream is told of who calls."""

from collections.abc import Mapping
from typing import Annotated

from msgspec import field

from sidecar.config.decoder import leaf
from sidecar.config.fields import (
    FIELD_NAME,
    RESERVED_HEADERS,
    HeaderValue,
    OwnHeader,
    left_out,
    parse_own_header,
    parse_token,
)
from sidecar.config.policy import Entry
from sidecar.core.headers import HeaderNames


def parse_header_pattern(text: str) -> str:
    """A header that the configuration may name, or what several begin with, followed by one `*`."""
    beginning, star, rest = text.partition("*")
    if not star:
        return parse_own_header(text)
    if rest or not beginning.strip("-_."):
        raise ValueError("is neither a name nor a pattern: a pattern has one '*', at its end, as in X-Envoy-*")
    parse_token(beginning)
    pattern = HeaderNames([text])
    handled = [name.decode() for name in sorted(RESERVED_HEADERS) if name in pattern]
    if handled:
        raise ValueError(f"stands for {handled[0]}, too, which the sidecar itself handles: write a longer pattern")
    return text


HeaderPattern = Annotated[
    str, leaf(parse_header_pattern, "the name of a header, or a pattern such as X-Envoy-*", f"^{FIELD_NAME}$")
]


class Identity(Entry, frozen=True, kw_only=True):
    """Headers that tell the upstream who calls."""

    headers: Mapping[OwnHeader, HeaderValue] = field(default_factory=dict)
    """Name to template, as written."""
    request_id: OwnHeader = "X-Request-Id"
    strip: tuple[HeaderPattern, ...] = ()
    """Removed from every request, beside STRIPPED of core.headers."""
    keep: tuple[HeaderPattern, ...] = ()
    """What the trusted proxies set themselves; removed from everyone else's requests."""
    would_deny: OwnHeader | None = left_out()
    """Header that tells why a request would have been refused; None tells nothing."""

    @property
    def own_headers(self) -> tuple[str, ...]:
        """Names of what the sidecar alone sets, beside the request id."""
        return (*self.headers, *(() if self.would_deny is None else (self.would_deny,)))
