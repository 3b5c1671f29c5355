"""Who is connected, counted against two caps."""

from typing import Literal

from sidecar.core.client_address import address_subject

LimitName = Literal["connections", "connections_per_address"]
"""By its name among `limits`."""


class ConnectionLimits:
    """Connections by the address they come from (an IPv6 client's is its /64).

    Each `acquire` that went well ends with a
    `release` of the same peer.
    """

    def __init__(self) -> None:
        self._taken = 0
        self._by_address: dict[str, int] = {}

    def acquire(self, peer: str, *, most: int, most_of_one: int | None) -> LimitName | None:
        """None, or the cap that one more connection would be past. most_of_one: None for whoever is many clients."""
        address = address_subject(peer)
        from_there = self._by_address.get(address, 0)
        if most_of_one is not None and from_there >= most_of_one:
            return "connections_per_address"
        if self._taken >= most:
            return "connections"
        self._taken += 1
        self._by_address[address] = from_there + 1
        return None

    def release(self, peer: str) -> None:
        self._taken -= 1
        address = address_subject(peer)
        left = self._by_address[address] - 1
        if left:
            self._by_address[address] = left
        else:
            del self._by_address[address]

    def __len__(self) -> int:
        return self._taken
