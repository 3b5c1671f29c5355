"""What a new key must look like."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Final

from sidecar.core.apikey import BITS_PER_CHARACTER, KeyFormat
from sidecar.core.model import EVERY
from sidecar.core.scopes import Catalogue

_HIDDEN_BITS: Final = 96
"""Random bits that the stored prefix must leave unknown."""
_LAST_MOMENT: Final = 253_402_300_800_000_000
"""The year 10000, which RFC 3339 cannot write."""
_MAX_LIMIT: Final = 2**53
_TENANT: Final = re.compile(r"[!-.0-~]{1,200}")
_METADATA_KEY: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_METADATA: Final = 64
_MAX_METADATA_VALUE: Final = 1_024
_MAX_NAME: Final = 200


class UnfitKey(Exception):
    """What is asked for cannot be issued. One line for each problem."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """What is asked for. `scopes` None is the default ones; `environment` None the first; `expires_at` microseconds."""

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
    """What the configuration says of keys. Raises ValueError where the stored prefix would tell too much of a key."""

    format: KeyFormat
    environments: Mapping[str, str]
    """Environment to prefix; the first is that of keys issued without one, and of keys for every one."""
    prefix_length: int
    default_scopes: tuple[str, ...] = ()
    catalogue: Catalogue
    plans: Collection[str] = ()
    quotas: Collection[str] = ()

    def __post_init__(self) -> None:
        if not self.environments:
            raise ValueError("keys need at least one environment with a prefix")
        for prefix in self.environments.values():
            shown = max(self.prefix_length - len(prefix), 0)
            if (self.format.random_length - shown) * BITS_PER_CHARACTER < _HIDDEN_BITS:
                raise ValueError(
                    f"prefix_length {self.prefix_length} stores too much of a key that begins with {prefix!r}"
                )

    def environment_of(self, wanted: NewKey) -> str:
        return next(iter(self.environments)) if wanted.environment is None else wanted.environment

    def prefix_of(self, environment: str) -> str:
        first = next(iter(self.environments.values()))
        return first if environment == EVERY else self.environments[environment]

    def check(self, wanted: NewKey, now: int) -> None:
        """Raises UnfitKey with every problem at once. `now` in microseconds."""
        problems = [*self._names(wanted), *_texts(wanted), *_metadata(wanted.metadata)]
        if wanted.expires_at is not None and wanted.expires_at <= now:
            problems.append("the time at which the key expires is not in the future")
        if wanted.expires_at is not None and wanted.expires_at >= _LAST_MOMENT:
            problems.append("the time at which the key expires is past the year 9999")
        if problems:
            raise UnfitKey(problems)

    def _names(self, wanted: NewKey) -> Iterator[str]:
        known_scopes = [*self.catalogue.scopes, EVERY]
        for scope in self.catalogue.unknown(wanted.scopes or ()):
            yield _unknown("scope", scope, known_scopes)
        environment = self.environment_of(wanted)
        if environment != EVERY and environment not in self.environments:
            yield _unknown("environment", environment, [*self.environments, EVERY])
        if wanted.plan is not None and wanted.plan not in self.plans:
            yield _unknown("plan", wanted.plan, self.plans)
        for quota, limit in wanted.quotas.items():
            if quota not in self.quotas:
                yield _unknown("quota", quota, self.quotas)
            if not 1 <= limit <= _MAX_LIMIT:
                yield f"the limit of quota {quota!r} must be from 1 to 2**53"


def _texts(wanted: NewKey) -> Iterator[str]:
    if not (1 <= len(wanted.name) <= _MAX_NAME and wanted.name.isprintable() and not wanted.name.isspace()):
        yield f"a name has 1 to {_MAX_NAME} printable characters"
    if wanted.tenant is not None and not _TENANT.fullmatch(wanted.tenant):
        yield "a tenant has 1 to 200 printable ASCII characters without spaces and slashes, or is * for every one"


def _metadata(metadata: Mapping[str, str]) -> Iterator[str]:
    if len(metadata) > _MAX_METADATA:
        yield f"a key holds at most {_MAX_METADATA} metadata entries"
    for name, value in metadata.items():
        if not _METADATA_KEY.fullmatch(name):
            yield f"the metadata name {name!r} may hold letters, digits, _ . and - only, 1 to 64 of them"
        if len(value) > _MAX_METADATA_VALUE or not value.isprintable():
            yield f"the value of metadata {name!r} has at most {_MAX_METADATA_VALUE} printable characters"


def _unknown(kind: str, name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, known, n=1)
    if close:
        return f"unknown {kind} {name!r} (did you mean {close[0]!r}?)"
    return f"unknown {kind} {name!r} (known: {', '.join(sorted(known)) or 'none'})"
