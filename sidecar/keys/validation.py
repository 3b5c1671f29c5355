"""The rules that a new key must follow."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from typing import Final

from sidecar.core.apikey import BITS_PER_CHARACTER, STORED_RANDOM, KeyFormat
from sidecar.core.model import EVERY
from sidecar.core.policy import Catalogue
from sidecar.core.units import counted

_HIDDEN_BITS: Final = 96
"""Random bits of a key that its stored prefix must not contain."""
_YEAR_10000: Final = 253_402_300_800_000_000
"""RFC 3339 cannot express it."""
_MAX_LIMIT: Final = 2**53
_TENANT: Final = re.compile(r"[!-.0-~]{1,200}")
_METADATA_KEY: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_METADATA: Final = 64
_MAX_METADATA_VALUE: Final = 1_024
_MAX_NAME: Final = 200
_LACKING: Final = "each key must have {} (keys.require)"
_MAX_UNKNOWN_NAMES: Final = 50
"""Most unknown names that are reported: finding a similar name costs far more than sending an unknown one."""


class Violation(str):
    """One line that says what is wrong, and the path of the field, such as `("scopes", "0")`."""

    __slots__ = ("path",)

    path: tuple[str, ...]

    def __new__(cls, text: str, *path: str) -> "Violation":
        violation = super().__new__(cls, text)
        violation.path = path
        return violation


class InvalidKey(Exception):
    """The key breaks rules. `problems` has one line for each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key to issue. `scopes` None: the default scopes. `environment` None: the first. `expires_at`: microseconds."""

    name: str
    scopes: tuple[str, ...] | None = None
    tenant: str | None = None
    environment: str | None = None
    plan: str | None = None
    quotas: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    expires_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRules:
    """The configuration's rules for keys. Raises ValueError if the stored prefix would contain too much of a key."""

    format: KeyFormat
    environments: Mapping[str, str]
    """Environment to prefix. The first is for keys without an environment, and for keys of every environment."""
    prefix_length: int | None = None
    """Characters of a key that are stored readably; None: its prefix and STORED_RANDOM more."""
    default_scopes: tuple[str, ...] = ()
    default_plan: str | None = None
    catalogue: Catalogue
    plans: Collection[str] = ()
    quotas: Collection[str] = ()
    required: Collection[str] = ()
    """What a key must be issued with: fields of NewKey, and `metadata.NAME`."""
    scopes_per_key: int | None = None
    """How many scopes each key has, none of them a wildcard; None is any number."""

    def __post_init__(self) -> None:
        if not self.environments:
            raise ValueError("keys need at least one environment with a prefix")
        for prefix in self.environments.values():
            shown = self.stored_length(prefix) - len(prefix)
            if (self.format.random_length - shown) * BITS_PER_CHARACTER < _HIDDEN_BITS:
                raise ValueError(
                    f"prefix_length {self.prefix_length} stores too much of a key that begins with {prefix!r}"
                )

    def stored_length(self, prefix: str) -> int:
        """Characters of a key with this prefix that are stored readably."""
        return len(prefix) + STORED_RANDOM if self.prefix_length is None else self.prefix_length

    def environment_of(self, wanted: NewKey) -> str:
        return next(iter(self.environments)) if wanted.environment is None else wanted.environment

    def plan_of(self, wanted: NewKey) -> str | None:
        return self.default_plan if wanted.plan is None else wanted.plan

    def prefix_of(self, environment: str) -> str:
        first = next(iter(self.environments.values()))
        return first if environment == EVERY else self.environments[environment]

    def check(self, wanted: NewKey, now: int) -> None:
        """Raises InvalidKey with every problem. now: microseconds."""
        problems = [*islice(self._names(wanted), _MAX_UNKNOWN_NAMES), *_texts(wanted), *_metadata(wanted.metadata)]
        if wanted.expires_at is not None and wanted.expires_at <= now:
            problems.append(Violation("the expiry is not in the future", "expires_at"))
        if wanted.expires_at is not None and not is_writable(wanted.expires_at):
            problems.append(Violation("the expiry is after the year 9999", "expires_at"))
        if problems:
            raise InvalidKey(problems)

    def check_new(self, wanted: NewKey, now: int) -> None:
        """As `check`, and also for what each key must be issued with."""
        lacking: tuple[str, ...] = tuple(self.lacking(wanted))
        try:
            self.check(wanted, now)
        except InvalidKey as invalid:
            lacking = (*invalid.problems, *lacking)
        if lacking:
            raise InvalidKey(lacking)

    def lacking(self, wanted: NewKey) -> Iterator[Violation]:
        """What a key must have and `wanted` lacks, after defaults."""
        scopes = tuple(dict.fromkeys(self.default_scopes if wanted.scopes is None else wanted.scopes))
        for name in self.required:
            kind, _, entry = name.partition(".")
            given = wanted.metadata.get(entry) if entry else scopes if name == "scopes" else getattr(wanted, name)
            if not given or (isinstance(given, str) and given.isspace()):
                yield Violation(_LACKING.format(name.replace(".", " ")), *((kind, entry) if entry else (kind,)))
        if self.scopes_per_key is not None and not self._has_number(scopes, self.scopes_per_key):
            number, known = counted(self.scopes_per_key, "scope"), ", ".join(self.catalogue.scopes)
            yield Violation(f"each key has exactly {number}, of: {known}", "scopes")

    def _has_number(self, scopes: tuple[str, ...], number: int) -> bool:
        return len(scopes) == number and all(scope in self.catalogue.scopes for scope in scopes)

    def _names(self, wanted: NewKey) -> Iterator[Violation]:
        known_scopes = [*self.catalogue.scopes, EVERY]
        scopes = wanted.scopes or ()
        for scope in self.catalogue.unknown(scopes):
            yield Violation(_unknown("scope", scope, known_scopes), "scopes", str(scopes.index(scope)))
        environment = self.environment_of(wanted)
        if environment != EVERY and environment not in self.environments:
            yield Violation(_unknown("environment", environment, [*self.environments, EVERY]), "environment")
        if wanted.plan is not None and wanted.plan not in self.plans:
            yield Violation(_unknown("plan", wanted.plan, self.plans), "plan")
        for quota, limit in wanted.quotas.items():
            if quota not in self.quotas:
                yield Violation(_unknown("quota", quota, self.quotas), "quotas", quota)
            if not 1 <= limit <= _MAX_LIMIT:
                yield Violation(f"the limit of quota {quota!r} must be from 1 to 2**53", "quotas", quota)


def is_writable(at: int) -> bool:
    """Whether RFC 3339 can express the time (microseconds)."""
    return at < _YEAR_10000


def is_name(text: str) -> bool:
    """Whether a key may have this name."""
    return 1 <= len(text) <= _MAX_NAME and text.isprintable() and not text.isspace()


def is_tenant(text: str) -> bool:
    """Whether a key may have this tenant."""
    return _TENANT.fullmatch(text) is not None


def is_metadata(metadata: Mapping[str, str]) -> bool:
    """Whether a key may have this metadata."""
    return len(metadata) <= _MAX_METADATA and all(
        _METADATA_KEY.fullmatch(name) and _is_value(value) for name, value in metadata.items()
    )


def _is_value(text: str) -> bool:
    return len(text) <= _MAX_METADATA_VALUE and text.isprintable()


def _texts(wanted: NewKey) -> Iterator[Violation]:
    if not is_name(wanted.name):
        yield Violation(f"a name has 1 to {_MAX_NAME} printable characters", "name")
    if wanted.tenant is not None and not is_tenant(wanted.tenant):
        form = "1 to 200 printable ASCII characters without spaces and slashes"
        yield Violation(f"a tenant has {form}, or is * for every tenant", "tenant")


def _metadata(metadata: Mapping[str, str]) -> Iterator[Violation]:
    if len(metadata) > _MAX_METADATA:
        yield Violation(f"a key holds at most {_MAX_METADATA} metadata entries", "metadata")
    for name, value in metadata.items():
        if not _METADATA_KEY.fullmatch(name):
            text = f"the metadata name {name!r} must have 1 to 64 letters, digits, _ . or -"
            yield Violation(text, "metadata", name)
        if not _is_value(value):
            text = f"the value of metadata {name!r} must have at most {_MAX_METADATA_VALUE} printable characters"
            yield Violation(text, "metadata", name)


def _unknown(kind: str, name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, [each for each in known if each != EVERY], n=1)
    if close:
        return f"unknown {kind} {name!r} (did you mean {close[0]!r}?)"
    return f"unknown {kind} {name!r} (known: {', '.join(sorted(known)) or 'none'})"
