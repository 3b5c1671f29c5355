"""Turns the fields of an imported line into a key, and reports every problem of the line at once."""

import base64
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from sidecar.core.apikey import PLAIN, ForeignHash, ForeignKeys, looks_secret, pepper_id
from sidecar.core.model import EVERY, ApiKey, KeyStatus
from sidecar.core.units import json_type, microseconds
from sidecar.keys.ports import Actor
from sidecar.keys.transfer.formats import FIELDS, NEEDED, Unreadable
from sidecar.keys.validation import InvalidKey, KeyRules, NewKey, Violation

Fields = Mapping[str, object]

_HEX: Final = re.compile(r"[0-9A-Fa-f]{64}")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{43}=?")
_ID: Final = re.compile(r"key_[0-9A-Za-z]{20}")
_PREFIX: Final = re.compile(r"[!-~]{1,100}")
_FROM_URL: Final = str.maketrans("-_", "+/")
_EPOCH: Final = re.compile(r"([0-9]{10})(?:\.([0-9]{1,9}))?|([0-9]{13})|([0-9]{16})")
_MIN_PREFIX: Final = 6
"""Least characters of a prefix: a base64 hash does not begin with this many by chance."""
_NO_HASH: Final = (
    "hash: is not a SHA-256 in hex (64 digits) or base64 (44 characters); if it is the key itself, it does not belong "
    "in a file: write its hash"
)
_NOT_OURS: Final = (
    "prefix: is that of keys issued here, which need their `algorithm`, as `sidecar keys export` writes it; for keys "
    "made elsewhere, add {{prefix: {}}} to keys.imported in the configuration"
)
_MOST_SHOWN: Final = 12
_SECRET_LENGTH: Final = 22
"""Characters of base62 that nobody guesses (128 bits)."""
_SECRET: Final = re.compile(r"[0-9A-Za-z]{22,}")
_TIMES: Final = ("created_at", "expires_at")
_A_STRING: Final = ("be a string", str, None)
_TYPES: Final = {
    "scopes": ("be a list of strings", list, str),
    "quotas": ("map names to whole numbers", dict, int),
    "metadata": ("map names to strings", dict, str),
    "enabled": ("be true or false", bool, None),
}
"""What a field must do, its type, and that of its parts."""
_OF_ORIGIN: Final = ("hash", "prefix", "algorithm", "environment")
_NO_TEXTS: Final[Fields] = dict.fromkeys(FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The possible origins of imported keys: their prefixes and their hashes."""

    own: Mapping[str, str]
    """Environment to prefix."""
    foreign: Sequence[ForeignKeys]
    algorithms: frozenset[str]
    """Hash algorithms that this sidecar can compute."""
    hash: ForeignHash | None = None
    """The hash of foreign keys, if the prefix does not determine it."""

    def prefixes(self) -> frozenset[str]:
        """The prefixes of the environments and of foreign keys."""
        return frozenset({*self.own.values(), *(keys.prefix for keys in self.foreign)})

    def beginnings(self) -> tuple[str, ...]:
        """Prefixes that are long enough to distinguish a key from a hash."""
        return tuple(prefix for prefix in self.prefixes() if len(prefix) >= _MIN_PREFIX)

    def may_show(self, prefix: str) -> bool:
        """Whether a prefix may be stored and shown: it must not be the key, or most of it.

        Keys made elsewhere may have - and _ among their random characters, and so no long run of letters and digits.
        """
        if _PREFIX.fullmatch(prefix) is None or looks_secret(prefix):
            return False
        return len(prefix) < _SECRET_LENGTH or len(prefix) < _SECRET_LENGTH + max(
            (len(begin) for begin in self.prefixes() if prefix.startswith(begin)), default=0
        )

    def environment(self, prefix: str) -> str | None:
        """The environment whose keys have this prefix; None for a foreign key."""
        return next((name for name, own in self.own.items() if prefix.startswith(own)), None)

    def made_here(self, prefix: str, algorithm: str | None) -> bool:
        """Whether a key with our prefix can have been issued by a sidecar; exports name the algorithm of such a key.

        Only keys.imported accepts others at all: they have neither our length nor our checksum.
        """
        own = max((own for own in self.own.values() if prefix.startswith(own)), key=len)
        rest = prefix[len(own) :]
        return algorithm is not None and (rest == "" or (rest.isascii() and rest.isalnum()))

    def algorithm(self, prefix: str | None) -> tuple[str, str]:
        """Prefix and algorithm of a foreign key. Raises ValueError if no entry or several entries match."""
        matching = [keys for keys in self.foreign if prefix is None or prefix.startswith(keys.prefix)]
        matching = [keys for keys in matching if self.hash in (None, keys.hash)]
        if prefix is not None:
            longest = max((len(keys.prefix) for keys in matching), default=0)
            matching = [keys for keys in matching if len(keys.prefix) == longest]
        if not matching:
            raise ValueError(
                "no entry of keys.imported in the configuration matches it, and the key would be refused: add "
                f"{{prefix: {_beginning(prefix)}{f', hash: {self.hash}' if self.hash else ''}}} to keys.imported"
            )
        if len({keys.algorithm for keys in matching}) > 1:
            raise ValueError(
                "several entries of keys.imported match it: choose one with --hash, or with a longer prefix"
            )
        return matching[0].prefix if len(matching) == 1 else "", matching[0].algorithm


class InvalidLine(Exception):
    """The fields of a line do not make a key. Each problem is one line of text."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


class LineRules:
    """Makes keys from fields. now: microseconds. new_id: makes the id of a key without one."""

    def __init__(self, rules: KeyRules, origin: Origin, *, now: int, actor: Actor, new_id: Callable[[], str]) -> None:
        self.origin, self.now = origin, now
        self._rules, self._actor, self._new_id = rules, actor, new_id
        self._beginnings = origin.beginnings()

    def key_of(self, fields: Fields, *, ended: bool = False) -> ApiKey:
        """Raises InvalidLine with every problem. No problem repeats a hash, or text that may be a key.

        ended: whether the key may have expired.
        """
        wrong = dict(_field_problems(fields))
        problems = [f"{name}: {problem}" for name, problem in wrong.items()]
        # Everything is reported at once: the rest of the line is checked without these fields.
        fields = {name: value for name, value in fields.items() if name not in wrong} if wrong else fields
        texts = cast(Mapping[str, str | None], {**_NO_TEXTS, **fields})
        enabled = fields.get("enabled") is not False
        digest = b"" if "hash" in wrong else self.digest(texts["hash"] or "", texts["prefix"], problems)
        prefix, algorithm, environment = self._origin_of(texts, wrong, problems)
        expires_at = moment(texts["expires_at"], "expires_at", problems)
        created_at = self.created_at(texts["created_at"], problems)
        key_id = self.id_of(texts["id"], problems)
        wanted = self._wanted(fields, texts["name"] or "", environment, expires_at)
        if problems := [*problems, *self._violations(wanted, wrong, ended=ended)]:
            raise InvalidLine(_SECRET.sub("…", problem) for problem in problems)
        return ApiKey(
            id=key_id,
            name=wanted.name,
            prefix=prefix,
            digest=digest,
            algorithm=algorithm,
            tenant=wanted.tenant,
            environment=self._rules.environment_of(wanted),
            scopes=self._rules.default_scopes if wanted.scopes is None else tuple(dict.fromkeys(wanted.scopes)),
            plan=wanted.plan,
            quotas=wanted.quotas,
            metadata=wanted.metadata,
            created_at=created_at,
            created_by=self._actor.name,
            expires_at=expires_at,
            status=KeyStatus.ACTIVE if enabled else KeyStatus.DISABLED,
            disabled_at=None if enabled else self.now,
        )

    def _violations(self, wanted: NewKey, wrong: Container[str], *, ended: bool) -> Iterator[str]:
        """The rules that the key breaks, but for those of fields that are wrong already."""
        try:
            self._rules.check(wanted, 0 if ended else self.now)
        except InvalidKey as error:
            for problem in error.problems:
                if not isinstance(problem, Violation) or problem.path[0] not in wrong:
                    yield problem

    def id_of(self, text: str | None, problems: list[str]) -> str:
        """The id in the line, or a new one."""
        if text is None:
            return self._new_id()
        if not _ID.fullmatch(text):
            problems.append("id: must be key_ and 20 letters or digits, or be left out")
        return text

    def created_at(self, text: str | None, problems: list[str]) -> int:
        """The time of issue in microseconds; by default now."""
        at = moment(text, "created_at", problems)
        if at is not None and not 0 <= at <= self.now:
            problems.append("created_at: is not in the past")
        return self.now if at is None else at

    def _wanted(self, fields: Fields, name: str, environment: str | None, expires_at: int | None) -> NewKey:
        scopes = cast(list[str] | None, fields.get("scopes"))
        return NewKey(
            name=name,
            scopes=None if scopes is None else tuple(scopes),
            tenant=cast(str | None, fields.get("tenant")),
            environment=environment,
            plan=cast(str | None, fields.get("plan")),
            quotas=cast(Mapping[str, int], fields.get("quotas") or {}),
            metadata=cast(Mapping[str, str], fields.get("metadata") or {}),
            expires_at=expires_at,
        )

    def digest(self, text: str, prefix: str | None, problems: list[str]) -> bytes:
        """The bytes of a hash. Text that begins like a key is refused, because it may be one."""
        is_key = text.startswith(self._beginnings) or (
            len(prefix or "") >= _MIN_PREFIX and text.startswith(prefix or "")
        )
        digest = None if is_key else _bytes_of(text)
        if digest is None:
            problems.append(_NO_HASH)
        return digest or b""

    def _origin_of(
        self, texts: Mapping[str, str | None], wrong: Container[str], problems: list[str]
    ) -> tuple[str, str, str | None]:
        """Stored prefix, algorithm and environment. wrong: fields that cannot be looked at."""
        prefix, algorithm, environment = texts["prefix"], texts["algorithm"], texts["environment"]
        if any(name in wrong for name in _OF_ORIGIN):
            return "", "", environment
        if prefix is not None and not self.origin.may_show(prefix):
            problems.append(
                "prefix: must be the first characters of the key, at most 100, and too few to guess the rest"
            )
            return "", "", environment
        own = None if prefix is None else self.origin.environment(prefix)
        if own is not None and environment not in (None, own, EVERY):
            problems.append(f"prefix: belongs to the environment {own!r}, not to {environment!r}")
            return "", "", environment
        try:
            ours = prefix is not None and own is not None and self.origin.made_here(prefix, algorithm)
            begins, expected = ("", PLAIN) if ours else self.origin.algorithm(prefix)
        except ValueError as error:
            problems.append(f"prefix: {error}" if own is None else _NOT_OURS.format(self.origin.own[own]))
            return "", "", environment
        if algorithm is not None and algorithm not in self.origin.algorithms:
            problems.append(_unknown_algorithm(algorithm))
        return begins if prefix is None else prefix, algorithm or expected, environment or own


def _beginning(prefix: str | None) -> str:
    """What the entry of a key's prefix may be: all until the last _ or - of its first characters, or a few of these."""
    shown = (prefix or "")[:_MOST_SHOWN]
    return shown[: max(shown.rfind("_"), shown.rfind("-")) + 1] or shown[:4] or "PREFIX"


def _field_problems(fields: Fields) -> Iterator[tuple[str, str]]:
    """The names of fields that are missing or have a wrong type, each with what is wrong."""
    for name, value in fields.items():
        if value is not None and (problem := _type_problem(name, value)):
            yield name, problem
    for name in NEEDED:
        if fields.get(name) is None:
            yield name, "is required"


def _type_problem(name: str, value: object) -> str | None:
    """What is wrong with the type of a value, if anything."""
    if isinstance(value, Unreadable):
        return value.problem
    wanted, whole, part = _TYPES.get(name, _A_STRING)
    if not isinstance(value, whole) and not (name in _TIMES and type(value) in (int, float)):
        return f"must {wanted}, not {json_type(value)}"
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return None if all(type(one) is part for one in parts) else f"must {wanted}"


def _bytes_of(text: str) -> bytes | None:
    """32 bytes from hex or base64; base64 may be URL-safe and unpadded."""
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    if _BASE64.fullmatch(text):
        return base64.b64decode(text.translate(_FROM_URL)[:43] + "=")
    return None


def moment(text: str | float | None, name: str, problems: list[str]) -> int | None:
    """The time in microseconds; None without one.

    Digits alone are Unix seconds (10 of them, and decimals), milliseconds (13) or microseconds (16).
    """
    if text is None:
        return None
    text = str(text)
    if found := _EPOCH.fullmatch(text):
        seconds, decimals, milliseconds, exact = found.groups()
        return int((seconds + (decimals or "").ljust(6, "0")[:6]) if seconds else exact or milliseconds + "000")
    try:
        return microseconds(text)
    except ValueError:
        problems.append(
            f"{name}: is neither a date (2027-01-31) nor a time in RFC 3339 (2027-01-31T12:00:00Z) nor a Unix time; "
            "leave it out where there is none"
        )
        return None


def _unknown_algorithm(algorithm: str) -> str:
    pepper = pepper_id(algorithm)
    if pepper is None or looks_secret(pepper):
        return "algorithm: is unknown; leave it out, or copy it from `sidecar keys issue --offline`"
    return (
        f"algorithm: needs pepper {pepper}, which is not loaded: set SIDECAR_PEPPER to it, or add it to keys.imported"
    )
