"""Memory for slow clients: counted, bounded, and freed by resetting the slowest."""

import asyncio

from sidecar.proxy.transport import READ_BYTES, SHORT_READ_BYTES, STREAM_READ_BYTES, HeldBytes

MIB = 1 << 20


class Behind(asyncio.Transport):
    """A connection whose other end reads nothing."""

    def __init__(self, name: str, *, unsent: int = MIB, tls: bool = False) -> None:
        super().__init__({"peername": (name, 1), "sslcontext": True if tls else None})
        self._unsent, self._closing = unsent, False

    def get_write_buffer_size(self) -> int:
        return self._unsent

    def is_closing(self) -> bool:
        return self._closing

    def abort(self) -> None:
        self._closing = True


def behind(held: HeldBytes, *names: str) -> list[Behind]:
    """A mebibyte is held for each."""
    transports = [Behind(name) for name in names]
    for transport in transports:
        held.tell(transport, writing_paused=True, reading_paused=False)
    return transports


def reset_ones(held: HeldBytes) -> list[str]:
    found: list[str] = []
    held.on_reset = found.append
    return found


def test_over_the_limit_the_clients_that_stalled_longest_are_reset() -> None:
    held = HeldBytes(3 * MIB)
    found = reset_ones(held)
    transports = behind(held, "a", "b", "c", "d", "e")
    assert found == ["a", "b"]
    assert [transport.is_closing() for transport in transports] == [True, True, False, False, False]
    assert held.total == 3 * MIB


def test_clients_that_read_a_little_rank_behind_those_that_read_nothing() -> None:
    held = HeldBytes(2 * MIB)
    found = reset_ones(held)
    slow, _ = behind(held, "slow", "none")
    held.moved(slow)
    behind(held, "new")
    assert found == ["none"]


def test_a_client_that_catches_up_has_nothing_held() -> None:
    held = HeldBytes(2 * MIB)
    found = reset_ones(held)
    (first,) = behind(held, "a")
    held.tell(first, writing_paused=False, reading_paused=False)
    assert held.total == 0
    behind(held, "b", "c")
    assert found == []


def test_a_lower_limit_holds_at_once() -> None:
    held = HeldBytes(3 * MIB)
    found = reset_ones(held)
    behind(held, "a", "b", "c")
    held.limit = MIB
    assert found == ["a", "b"]


def test_the_more_is_held_the_less_is_read_at_a_time() -> None:
    held = HeldBytes(16 * MIB)
    sizes = [(len(held.buffer), len(held.stream_buffer))]
    for number in range(5):
        behind(held, str(number))
        sizes.append((len(held.buffer), len(held.stream_buffer)))
    assert sizes[:2] == [(READ_BYTES, STREAM_READ_BYTES)] * 2
    assert sizes[2:5] == [(READ_BYTES, READ_BYTES)] * 3
    assert sizes[5] == (SHORT_READ_BYTES, SHORT_READ_BYTES)


def test_the_end_of_high_memory_use_is_reported_once() -> None:
    held = HeldBytes(16 * MIB)
    told: list[str] = []
    held.on_relieved = lambda: told.append("relieved")
    for transport in behind(held, *"abc"):
        held.give_back(transport)
    assert told == []
    for transport in behind(held, *"abcdef"):
        held.give_back(transport)
    assert told == ["relieved"]


def test_a_piece_is_counted_whole_even_if_partly_sent() -> None:
    held = HeldBytes(16 * MIB)
    held.tell(Behind("a", unsent=1), writing_paused=True, reading_paused=False)
    assert held.total == STREAM_READ_BYTES


def test_for_a_client_that_speaks_tls_more_is_held_below_it() -> None:
    held = HeldBytes(16 * MIB)
    held.tell(Behind("a", tls=True), writing_paused=True, reading_paused=False)
    assert held.total > MIB


def test_nothing_is_held_for_a_connection_that_is_closing() -> None:
    held = HeldBytes(16 * MIB)
    transport = Behind("a")
    transport.abort()
    held.tell(transport, writing_paused=True, reading_paused=False)
    assert held.total == 0
