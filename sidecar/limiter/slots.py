"""Counts in memory that several processes share: slots of one size, locks that the kernel releases, a journal of one
slot.

A process may be killed at any time. The kernel then releases its locks (fcntl(2)), and the next process to lock finds
the old content of the slot in the journal, and restores it: a count is as before a take, or as after it.

A subject's digest selects a set of 64 slots, of which the subject uses one. Each set uses one of 64 locks, so that
processes seldom wait for each other. A count is a few integers; see `limiter.shared`.
"""

import fcntl
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from struct import Struct
from typing import Final

WAYS: Final = 64
"""Slots in a set."""
MOST_NUMBERS: Final = 66
"""Most numbers of one count: 33 stamps of a sliding window, each a time and its units."""
MOST_TEXT: Final = 232
"""Bytes for the subject of a count. If they are too few, it still counts, but is not saved at the end."""

_FOR_STRANGERS: Final = 6
"""Slots of a set that keys and tenants never use: a tenth, as in `limiter.tables`."""
_ROOM: Final = 48
"""Counts for which a set is sized, so that few sets fill up early."""
_LOCKS: Final = 64
_JOURNAL_BYTES: Final = 1024
_DIGEST_BYTES: Final = 16
_EXPIRES_AT: Final = WAYS * _DIGEST_BYTES
_FLAGS_AT: Final = _EXPIRES_AT + WAYS * 8
_EVICTED_AT: Final = _FLAGS_AT + WAYS
_SLOTS_AT: Final = 2048
_NUMBERS_AT: Final = 8
_TEXT_AT: Final = _NUMBERS_AT + MOST_NUMBERS * 8
_SLOT_BYTES: Final = _TEXT_AT + MOST_TEXT
_SET_BYTES: Final = _SLOTS_AT + WAYS * _SLOT_BYTES
_FIRST_SET: Final = _LOCKS * _JOURNAL_BYTES

OF_STRANGERS: Final = 1
"""Flag: such counts only evict others of their kind (see `limiter.tables.EntryBudget`)."""
MUCH: Final = 2
"""Flag: at least half of the limit is used, so it is evicted last."""

_STRUCTS: Final = tuple(Struct(f"{count}Q") for count in range(MOST_NUMBERS + 1))
_EXPIRES: Final = Struct(f"{WAYS}Q")
_TRY: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
_TRIES: Final = 16
"""Attempts to get a lock, some 20 microseconds in total: an event loop must not wait longer."""


class Busy(Exception):
    """Another process holds a lock, and may have been suspended with it. Nothing was changed."""


class Place:
    """Where a subject's count is: its digest, the beginning of its set, the set's lock, and its last slot."""

    __slots__ = ("base", "digest", "lock", "slot")

    def __init__(self, digest: bytes, base: int, lock: int) -> None:
        self.digest, self.base, self.lock = digest, base, lock
        self.slot = 0


class Slots:
    """Create it before forking the processes that share it. Times are microseconds; slots with past times are free.

    Read and written by one thread of a process, except for `entries` and the totals.
    """

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self._sets = -(-max_entries // _ROOM)
        # Anonymous memory files; two, because closing any descriptor of a file releases a process's locks.
        self._locks = os.memfd_create("sidecar-locks", os.MFD_CLOEXEC)
        self._memory = mmap.mmap(-1, _FIRST_SET + self._sets * _SET_BYTES)
        self._words = memoryview(self._memory).cast("Q")

    def place(self, digest: bytes) -> Place:
        number = int.from_bytes(digest[:8], "little") % self._sets
        return Place(digest, _FIRST_SET + number * _SET_BYTES, number % _LOCKS)

    def lock(self, numbers: Sequence[int]) -> None:
        """Lock all of them, which are in order. Raises Busy, with none locked, if another process holds one."""
        for at, number in enumerate(numbers):
            try:
                self.lock_one(number)
            except Busy:
                self.unlock(numbers[:at])
                raise

    def lock_one(self, number: int) -> None:
        """As `lock`."""
        try:
            fcntl.lockf(self._locks, _TRY, 1, number)
        except OSError:
            self._try_again(number)
        if self._words[number * _JOURNAL_BYTES // 8]:
            self._write_back(number * _JOURNAL_BYTES)

    def unlock_one(self, number: int) -> None:
        fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, number)

    def unlock(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, number)

    def find(self, place: Place, now_us: int) -> tuple[int, tuple[int, ...]]:
        """The slot of a locked place, and its numbers; -1 and no numbers if there is no valid count."""
        memory, base, slot = self._memory, place.base, place.slot
        digest_at = base + slot * _DIGEST_BYTES
        if memory[digest_at : digest_at + _DIGEST_BYTES] != place.digest:
            slot = self._search(place)
            if slot < 0:
                return -1, ()
            place.slot = slot
        if self._words[(base + _EXPIRES_AT) // 8 + slot] <= now_us:
            return slot, ()
        start = base + _SLOTS_AT + slot * _SLOT_BYTES
        count = self._words[start // 8] & 0xFFFF
        return slot, _STRUCTS[count].unpack_from(memory, start + _NUMBERS_AT)

    def write(self, place: Place, slot: int, numbers: Sequence[int], *, expires: int, flags: int) -> None:
        """Change the content of a slot of a locked place."""
        words, start = self._words, place.base + _SLOTS_AT + slot * _SLOT_BYTES
        header, count = words[start // 8], len(numbers)
        size = _NUMBERS_AT + max(header & 0xFFFF, count) * 8
        journal = place.lock * _JOURNAL_BYTES
        self._memory[journal + 16 : journal + 16 + size] = self._memory[start : start + size]
        words[journal // 8 + 1] = size
        words[journal // 8] = start  # From here until it is reset, the old content can be restored.
        _STRUCTS[count].pack_into(self._memory, start + _NUMBERS_AT, *numbers)
        words[start // 8] = header & ~0xFFFF | count
        words[journal // 8] = 0
        self._memory[place.base + _FLAGS_AT + slot] = flags
        words[(place.base + _EXPIRES_AT) // 8 + slot] = expires

    def write_last(self, place: Place, slot: int, at: int, number: int, *, flags: int) -> None:
        """Change the last number of a slot, which is at `at`, with a single store of a word, which is atomic."""
        self._words[(place.base + _SLOTS_AT + slot * _SLOT_BYTES + _NUMBERS_AT) // 8 + at] = number
        self._memory[place.base + _FLAGS_AT + slot] = flags

    def enter(
        self, place: Place, now_us: int, numbers: Sequence[int], text: bytes, *, expires: int, flags: int
    ) -> None:
        """Put a new count into a locked place. Its digest is written last: an incomplete one is never found."""
        slot = self._free(place.base, now_us, flags)
        start, digest_at = place.base + _SLOTS_AT + slot * _SLOT_BYTES, place.base + slot * _DIGEST_BYTES
        self._memory[digest_at : digest_at + _DIGEST_BYTES] = bytes(_DIGEST_BYTES)
        kept = text if len(text) <= MOST_TEXT else b""
        self._memory[start + _TEXT_AT : start + _TEXT_AT + len(kept)] = kept
        self._words[start // 8] = len(kept) << 32 | len(numbers)
        _STRUCTS[len(numbers)].pack_into(self._memory, start + _NUMBERS_AT, *numbers)
        self._memory[place.base + _FLAGS_AT + slot] = flags
        self._words[(place.base + _EXPIRES_AT) // 8 + slot] = expires
        self._memory[digest_at : digest_at + _DIGEST_BYTES] = place.digest

    def entries(self, now_us: int) -> Iterator[tuple[bytes, bytes, tuple[int, ...], int]]:
        """Digest, text, numbers and end of each valid count. For any thread: it takes no lock."""
        for base in self._bases():
            for slot, expires in enumerate(_EXPIRES.unpack_from(self._memory, base + _EXPIRES_AT)):
                if expires > now_us:
                    yield self._entry(base, slot, expires)

    def held(self, now_us: int) -> int:
        """How many counts are valid."""
        expires = (_EXPIRES.unpack_from(self._memory, base + _EXPIRES_AT) for base in self._bases())
        return sum(end > now_us for ends in expires for end in ends)

    def evicted(self) -> int:
        """How many counts were evicted since the start."""
        return sum(self._words[(base + _EVICTED_AT) // 8] for base in self._bases())

    def _search(self, place: Place) -> int:
        memory, base = self._memory, place.base
        found = memory.find(place.digest, base, base + _EXPIRES_AT)
        while found >= 0 and (found - base) % _DIGEST_BYTES:
            found = memory.find(place.digest, found + 1, base + _EXPIRES_AT)
        return found if found < 0 else (found - base) // _DIGEST_BYTES

    def _bases(self) -> range:
        return range(_FIRST_SET, _FIRST_SET + self._sets * _SET_BYTES, _SET_BYTES)

    def _entry(self, base: int, slot: int, expires: int) -> tuple[bytes, bytes, tuple[int, ...], int]:
        start, digest_at = base + _SLOTS_AT + slot * _SLOT_BYTES, base + slot * _DIGEST_BYTES
        held = self._memory[start : start + _SLOT_BYTES]
        while (again := self._memory[start : start + _SLOT_BYTES]) != held:  # It was being written.
            held = again
        digest = self._memory[digest_at : digest_at + _DIGEST_BYTES]
        header = int.from_bytes(held[:8], "little")
        numbers = _STRUCTS[min(header & 0xFFFF, MOST_NUMBERS)].unpack_from(held, _NUMBERS_AT)
        return digest, held[_TEXT_AT : _TEXT_AT + (header >> 32)], numbers, expires

    def _free(self, base: int, now_us: int, flags: int) -> int:
        """A slot for a new count: a past one, or the one that ends first among those with little use."""
        expires = _EXPIRES.unpack_from(self._memory, base + _EXPIRES_AT)
        ways = range(WAYS) if flags & OF_STRANGERS else range(_FOR_STRANGERS, WAYS)
        free = next((way for way in ways if expires[way] <= now_us), None)
        if free is not None:
            return free
        held = self._memory[base + _FLAGS_AT : base + _FLAGS_AT + WAYS]
        going = [way for way in ways if held[way] & OF_STRANGERS] or ways
        self._words[(base + _EVICTED_AT) // 8] += 1
        return min(going, key=lambda way: (held[way] & MUCH, expires[way]))

    def _try_again(self, number: int) -> None:
        """Retry: an owner on another core releases the lock within microseconds. Raises Busy."""
        for _ in range(_TRIES):
            with suppress(OSError):
                fcntl.lockf(self._locks, _TRY, 1, number)
                return
        raise Busy

    def _write_back(self, journal: int) -> None:
        """Undo the unfinished write of a killed process. This can be repeated if interrupted."""
        start, size = self._words[journal // 8], self._words[journal // 8 + 1]
        self._memory[start : start + size] = self._memory[journal + 16 : journal + 16 + size]
        self._words[journal // 8] = 0
