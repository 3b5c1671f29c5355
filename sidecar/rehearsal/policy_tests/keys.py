"""The keys of tests: made up, in the form that the configuration prescribes, and never in a store."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Literal

from sidecar.config.build.config import Config
from sidecar.core.apikey import ALPHABET, Hasher, KeyFormat
from sidecar.core.model import ApiKey, KeyStatus
from sidecar.gate.compile import key_rules
from sidecar.keys.cache import MISS, CacheEntry, Found, Miss
from sidecar.keys.validation import NewKey
from sidecar.rehearsal.policy_tests.document import CUT, MISTYPED, UNKNOWN, KeyEntry

_SECOND: Final = 1_000_000
_MAKER: Final = "sidecar test"


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeKey:
    """The text that a request presents, and its key; None if no such key was issued."""

    text: str = field(repr=False)
    key: ApiKey | None


class KeyMaker:
    """Makes keys under one configuration. now: microseconds. The same name gives the same key, in every run."""

    def __init__(self, config: Config, hasher: Hasher, now: int) -> None:
        self._rules, self._hasher, self._now = key_rules(config), hasher, now

    def make(self, name: str, entry: KeyEntry) -> MadeKey:
        """Raises InvalidKey if `sidecar keys issue` would refuse such a key."""
        wanted = NewKey(
            name=entry.name or name,
            scopes=entry.scopes,
            tenant=entry.tenant,
            environment=entry.environment,
            plan=entry.plan,
            quotas=entry.quotas,
            metadata=entry.metadata,
        )
        self._rules.check_new(wanted, self._now)
        environment = self._rules.environment_of(wanted)
        prefix = self._rules.prefix_of(environment)
        text = entry.secret or _text(self._rules.format, prefix, name)
        digest, algorithm = self._hasher.for_new(text)
        times = self._times(entry)
        key = ApiKey(
            id=entry.id or f"key_{name}",
            name=wanted.name,
            prefix=text[: self._rules.stored_length(prefix)],
            digest=digest,
            algorithm=algorithm,
            tenant=wanted.tenant,
            environment=environment,
            scopes=tuple(dict.fromkeys(self._rules.default_scopes if wanted.scopes is None else wanted.scopes)),
            plan=self._rules.plan_of(wanted),
            quotas=wanted.quotas,
            metadata=wanted.metadata,
            status=KeyStatus(entry.status) if entry.status in _STORED else KeyStatus.ACTIVE,
            created_at=self._now - int(entry.age * _SECOND),
            created_by=_MAKER,
            **times,
        )
        return MadeKey(text=text, key=key)

    def wrong(self, kind: str) -> MadeKey:
        """One of UNKNOWN, MISTYPED, CUT."""
        text = _text(self._rules.format, next(iter(self._rules.environments.values())), UNKNOWN)
        if kind == MISTYPED:
            text = f"{text[:-1]}{ALPHABET[ALPHABET.index(text[-1]) - 1]}"
        return MadeKey(text=text[:-4] if kind == CUT else text, key=None)

    def _times(self, entry: KeyEntry) -> dict[str, Any]:
        """The times in the life of the key, from its entry."""
        now = self._now
        expires = 0.0 if entry.status == "expired" else entry.expires_in
        retires = 0.0 if entry.status == "retired" else entry.retires_in
        return {
            "expires_at": None if expires is None else now + int(expires * _SECOND),
            "retires_at": None if retires is None else now + int(retires * _SECOND),
            "replaced_at": None if retires is None else now - _SECOND,
            "disabled_at": now - _SECOND if entry.status == "disabled" else None,
            "revoked_at": now - _SECOND if entry.status == "revoked" else None,
        }


_STORED: Final = frozenset(KeyStatus)


def _text(form: KeyFormat, prefix: str, name: str) -> str:
    """A well-formed plaintext that is derived from the name: it protects nothing."""
    number = int.from_bytes(sha256(f"{_MAKER} {prefix} {name}".encode()).digest() * 4)
    return form.make(prefix, lambda below: number % below)


class KnownKeys:
    """Finds made-up keys, as a cache over a store finds issued ones.

    `forget` resets it to the state after a start. It remembers by text which keys were looked up.
    """

    def __init__(self) -> None:
        self._stored: dict[bytes, CacheEntry] = {}
        self._seen: dict[bytes, CacheEntry] = {}

    def add(self, key: ApiKey) -> None:
        self._stored[key.digest] = CacheEntry(key, epoch=0)

    def forget(self) -> None:
        if self._seen:
            self._seen.clear()

    def peek(self, secret_digest: bytes) -> CacheEntry | Literal[Miss.MISS] | None:
        return self._seen.get(secret_digest, MISS)

    def uncount(self, found: Found) -> None:
        """Nothing is counted."""

    def remembers(self, secret_digest: bytes) -> bool:
        return secret_digest in self._seen

    async def find(self, secret_digest: bytes, candidates: Callable[[], Mapping[bytes, str]]) -> CacheEntry | None:
        for digest, algorithm in candidates().items():
            entry = self._stored.get(digest)
            if entry is not None and entry.key.algorithm == algorithm:
                self._seen[secret_digest] = entry
                return entry
        return None
