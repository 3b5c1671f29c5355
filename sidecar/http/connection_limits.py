"""Open connections, counted against two limits."""

from typing import Literal

from sidecar.core.client_address import address_subject

LimitName = Literal["connections", "connections_per_address"]
"""The name of a limit below `limits` in the configuration."""


class ConnectionLimits:
    """Counts connections in total and by client address (for IPv6, by /64).

    Each successful `acquire` is followed by one `release` of the same peer.
    """

    def __init__(self) -> None:
        self._total = 0
        self._by_address: dict[str, int] = {}

    def acquire(self, peer: str, *, most: int, most_of_one: int | None) -> LimitName | None:
        """None, or the limit that one more connection would exceed, which is then not counted.

        most_of_one: None for a peer that stands for many clients.
        """
        address = address_subject(peer)
        from_address = self._by_address.get(address, 0)
        if most_of_one is not None and from_address >= most_of_one:
            return "connections_per_address"
        if self._total >= most:
            return "connections"
        self._total += 1
        self._by_address[address] = from_address + 1
        return None

    def release(self, peer: str) -> None:
        self._total -= 1
        address = address_subject(peer)
        left = self._by_address[address] - 1
        if left:
            self._by_address[address] = left
        else:
            del self._by_address[address]

    def __len__(self) -> int:
        return self._total
