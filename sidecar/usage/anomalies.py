"""What may be worth a look in how keys are used: the kinds, one event, and from where on. Values only."""

import re
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

_V4_HOST, _V6_HOST = 8, 80
_UNSHOWN = re.compile(r"[^ -~]")
AGENT_CHARS = 200
"""Of a user agent, so many are kept."""


class AnomalyKind(StrEnum):
    """Closed set: metric label and log field at once."""

    UNUSED_KEY = "unused_key"
    """A key was used after a long time without."""
    NEW_NETWORK = "new_network"
    """A key was used from a network that it never came from."""
    REFUSALS = "refusals"
    """One key, or one network without a known key, was refused many times."""
    REVOKED_KEY = "revoked_key"
    """A revoked key is still tried."""
    RETIRED_KEY = "retired_key"
    """A key that another has replaced is still tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anomaly:
    """Something that somebody may want to look at."""

    kind: AnomalyKind
    key_id: str | None
    """None where no stored key took part."""
    at: int
    """Microseconds."""
    address: str
    """Of the client; empty where it came by a Unix socket."""
    detail: str
    """For people: `first use from 203.0.113.0/24`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusual:
    """From where on something is unusual. None: never."""

    unused_seconds: float | None = 30 * 86_400
    new_network: bool = True
    refusals: int | None = 100
    """So many of one key, or of one network, within `refusals_seconds`."""
    refusals_seconds: float = 60
    quiet_seconds: float = 3600
    """The same is not told again within these."""


def network_of(address: str) -> str:
    """The /24 or, of IPv6, the /48 that `address` lies in, as `203.0.113.0/24`; empty for what is no address."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is None:
            return f"{IPv6Address(int(parsed) >> _V6_HOST << _V6_HOST)}/{128 - _V6_HOST}"
        parsed = parsed.ipv4_mapped
    return f"{IPv4Address(int(parsed) >> _V4_HOST << _V4_HOST)}/{32 - _V4_HOST}"


def agent_text(value: bytes) -> str:
    """A User-Agent field as it is kept and shown: printable ASCII, at most `AGENT_CHARS`."""
    return _UNSHOWN.sub("?", value[:AGENT_CHARS].decode("latin-1"))
