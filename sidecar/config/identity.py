"""The `identity` section: how the upstream learns who is calling."""

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
    """A header that the configuration may name, or the prefix of several, followed by one `*`."""
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
    """Headers that identify the caller to the upstream."""

    headers: Mapping[OwnHeader, HeaderValue] = field(default_factory=dict)
    """Name to template, as written."""
    request_id: OwnHeader = "X-Request-Id"
    strip: tuple[HeaderPattern, ...] = ()
    """Removed from every request, in addition to STRIPPED of core.headers."""
    keep: tuple[HeaderPattern, ...] = ()
    """Headers that the trusted proxies set themselves; removed from all other requests."""
    would_deny: OwnHeader | None = left_out()
    """Header with the reason for which a request would have been refused; None sends none."""

    @property
    def own_headers(self) -> tuple[str, ...]:
        """Names of the headers that only the sidecar sets, besides the request id."""
        return (*self.headers, *(() if self.would_deny is None else (self.would_deny,)))
