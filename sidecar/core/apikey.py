"""The format of a key (prefix, random part, checksum), and what is stored instead of it (digests)."""

import hmac
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from typing import Final, Literal, get_args
from zlib import crc32

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PAIRS = tuple(first + second for first in ALPHABET for second in ALPHABET)

MIN_RANDOM_BITS = 128
BITS_PER_CHARACTER = math.log2(len(ALPHABET))
_LONG_TAIL = re.compile(rf"(?<![{ALPHABET}])[{ALPHABET}]{{{math.ceil(MIN_RANDOM_BITS / BITS_PER_CHARACTER)},}}+\s*+\Z")
"""Tried once at each run of characters, however long it is."""
QUOTES: Final = "\"'`\u201c\u201d\u2018\u2019"
"""Straight, back and typographic ones."""
_COPIED = re.compile(rf"\A(?:[\s{QUOTES}]|[A-Za-z][A-Za-z-]*:?\s+(?=\S))+|(?:[\s{QUOTES}…]|\.{{3}})+\Z")
_SHOWN: Final = 12
"""As much as the prefix of a key, which is no secret."""
_WORD: Final = re.compile(r"[\w-]{22,}")
_KEY_IN_WORD: Final = re.compile("[0-9A-Za-z]{22}")
PLAIN: Final = "sha256"
ForeignHash = Literal["sha256", "hmac-sha256", "sha256-pepper-first", "sha256-pepper-last"]
"""How keys made elsewhere may be hashed: all but the first with a pepper, as a key, before or after the text."""
_HMAC = "hmac-sha256"
_MIN_PEPPER_CHARACTERS = 16


def base62(value: int, digits: int) -> str:
    """The last `digits` base62 digits of `value`, zero-padded."""
    pairs = "".join([_PAIRS[value // power % len(_PAIRS)] for power in _powers(digits // 2)])
    return ALPHABET[value // len(_PAIRS) ** (digits // 2) % len(ALPHABET)] + pairs if digits % 2 else pairs


@cache
def _powers(pairs: int) -> tuple[int, ...]:
    """The values of a number's digits in pairs, the highest first."""
    return tuple(len(_PAIRS) ** place for place in reversed(range(pairs)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A key's plaintext, on its way to the person who requested it."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFormat:
    """`length` base62 characters after the prefix, the last `checksum_length` of them a CRC32 of everything before.

    Six checksum characters contain the whole CRC32 and so catch every single wrong character; fewer contain it modulo
    62**n, and one mistake in 62**n reaches the store. Raises ValueError if fewer than 128 random bits remain.
    """

    length: int = 43
    checksum_length: int = 6

    def __post_init__(self) -> None:
        if self.checksum_length < 0 or self.random_length * BITS_PER_CHARACTER < MIN_RANDOM_BITS:
            wanted = math.ceil(MIN_RANDOM_BITS / BITS_PER_CHARACTER) + max(self.checksum_length, 0)
            raise ValueError(f"a key needs {MIN_RANDOM_BITS} random bits: make its length at least {wanted}")

    @property
    def random_length(self) -> int:
        return self.length - self.checksum_length

    def make(self, prefix: str, randbelow: Callable[[int], int]) -> str:
        """A new plaintext. `randbelow` as `secrets.randbelow`."""
        body = prefix + base62(randbelow(len(ALPHABET) ** self.random_length), self.random_length)
        return body + self._checksum(body)

    def check(self, text: str, prefixes: Iterable[str]) -> str | None:
        """The prefix under which `text` is well-formed (length, alphabet, checksum), or None."""
        if not text.isascii():
            return None
        for prefix in prefixes:
            if text.startswith(prefix) and self._fits(text, len(prefix)):
                return prefix
        return None

    def _fits(self, text: str, start: int) -> bool:
        # In ASCII, isalnum is exactly base62.
        if len(text) != start + self.length or not text[start:].isalnum():
            return False
        end = len(text) - self.checksum_length
        return text[end:] == self._checksum(text[:end])

    def _checksum(self, body: str) -> str:
        return base62(crc32(body.encode("ascii")), self.checksum_length)


STORED_RANDOM = 4
"""Random characters after a key's prefix that are stored readably: 14 million values to distinguish keys."""


def looks_secret(text: str) -> bool:
    """Whether `text` may be a plaintext, well-formed or not, of any configuration; an id or a stored prefix is not."""
    return _LONG_TAIL.search(text) is not None


def beginning(text: str) -> str:
    """As much of a text as an error message may repeat, even if it is a key or part of one."""
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def without_keys(message: str) -> str:
    """A message that repeats what somebody wrote, with what may be a key shortened."""

    # One pattern for both takes seconds for a long text without a key: it tries each character as the beginning.
    def shown(word: re.Match[str]) -> str:
        return beginning(word[0]) if _KEY_IN_WORD.search(word[0]) else word[0]

    return _WORD.sub(shown, message)


def pasted(text: str) -> str:
    """Return the key, id or prefix in `text` without what is copied along: quotes, spaces, `Bearer `, a list's …."""
    return _COPIED.sub("", text)


def wrapped(secret: str) -> str:
    """Return what surrounds a secret by mistake, `quotes` or `spaces`; empty if nothing does."""
    if secret != secret.strip():
        return "spaces"
    return "quotes" if len(secret) > 1 and secret[0] == secret[-1] and secret[0] in QUOTES else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pepper:
    """A secret that digests are keyed with, kept outside the store."""

    id: str
    secret: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: bytes) -> "Pepper":
        """The id is derived from the secret: it needs no configuration, and a wrong pepper is noticed."""
        return cls(id=sha256(b"sidecar-pepper-id" + secret).hexdigest()[:8], secret=secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignKeys:
    """Keys made elsewhere: their prefix, and how they are hashed there.

    They lack our checksum, so every text with their prefix is looked up.
    """

    prefix: str
    """Empty: every text without our own prefix."""
    hash: ForeignHash = PLAIN
    pepper: bytes | None = field(default=None, repr=False)

    @property
    def algorithm(self) -> str:
        """As stored with a digest."""
        return PLAIN if self.pepper is None else f"{self.hash}:{Pepper.of(self.pepper).id}"

    def digest(self, key: bytes) -> bytes:
        pepper = self.pepper or b""
        match self.hash:
            case "sha256":
                return sha256(key).digest()
            case "hmac-sha256":
                return hmac.digest(pepper, key, "sha256")
            case "sha256-pepper-first":
                return sha256(pepper + key).digest()
            case "sha256-pepper-last":
                return sha256(key + pepper).digest()


class Hasher:
    """Digests of keys under the peppers in force; the first is that of new keys. `foreign`: keys made elsewhere."""

    def __init__(self, peppers: Sequence[Pepper] = (), foreign: Sequence[ForeignKeys] = ()) -> None:
        self._peppers = tuple((f"{_HMAC}:{pepper.id}", pepper.secret) for pepper in peppers)
        self._foreign = tuple((keys.prefix, keys.algorithm, keys.digest) for keys in foreign)
        self.newest = self._peppers[0][0] if self._peppers else PLAIN
        """The algorithm of new keys."""
        self.algorithms = frozenset(
            {PLAIN, *(algorithm for algorithm, _ in self._peppers), *(algorithm for _, algorithm, _ in self._foreign)}
        )

    def for_new(self, text: str) -> tuple[bytes, str]:
        """Digest and algorithm to store for a new key."""
        return next(iter(self.candidates(text).items()))

    def candidates(self, text: str) -> Mapping[bytes, str]:
        """Every way in which this key may be stored: digest to algorithm, that of new keys first.

        Always includes the form without a pepper: keys issued before one was set keep working.
        """
        key = text.encode("utf-8")
        found = {hmac.digest(secret, key, "sha256"): algorithm for algorithm, secret in self._peppers}
        found[sha256(key).digest()] = PLAIN
        for prefix, algorithm, digest in self._foreign:
            if text.startswith(prefix):
                found.setdefault(digest(key), algorithm)
        return found


def pepper_id(algorithm: str) -> str | None:
    """The id of the pepper that `algorithm` needs, or None."""
    name, _, pepper = algorithm.partition(":")
    return pepper if pepper and name in get_args(ForeignHash) else None


def peppers_from(environ: Mapping[str, str]) -> tuple[Pepper, ...]:
    """Peppers of SIDECAR_PEPPER (that of new keys) and SIDECAR_PEPPER_PREVIOUS (during a rotation).

    Raises ValueError, without the value, for one that is too short or in quotes, and for a previous one alone. A
    previous one may have quotes: keys may have been hashed with them.
    """
    names = [name for name in ("SIDECAR_PEPPER", "SIDECAR_PEPPER_PREVIOUS") if name in environ]
    if names == ["SIDECAR_PEPPER_PREVIOUS"]:
        raise ValueError(
            "SIDECAR_PEPPER_PREVIOUS is set, but SIDECAR_PEPPER is not: set the pepper of new keys as well"
        )
    return tuple(Pepper.of(_pepper_secret(name, environ[name])) for name in names)


def _pepper_secret(name: str, value: str) -> bytes:
    if len(value) < _MIN_PEPPER_CHARACTERS:
        raise ValueError(
            f"{name} must have at least {_MIN_PEPPER_CHARACTERS} characters: "
            "make one with `openssl rand -base64 32`, or unset the variable to use no pepper"
        )
    if name == "SIDECAR_PEPPER" and (wrapping := wrapped(value)):
        raise ValueError(
            f"{name} has {wrapping} around it: set it without them; if keys were hashed with it as it is, "
            "set it as SIDECAR_PEPPER_PREVIOUS as well, as it is"
        )
    return value.encode("utf-8", "surrogateescape")
