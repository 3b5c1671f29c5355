"""Judges a recorded access log under two configurations, and collects the requests whose outcome changes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from sidecar.config.build.config import Config
from sidecar.core.errors import Reason
from sidecar.gate.compile import key_prefixes
from sidecar.gate.observation import NO_VALID_KEY
from sidecar.rehearsal.diff.outcomes import Caller, Judge, Outcome, parsed
from sidecar.rehearsal.recorded import RecordedRequest
from sidecar.telemetry.redaction import Redaction

Kind = Literal["opened", "closed", "refused otherwise"]
NotJudged = Literal[
    "redacted", "cut", "wrong key", "malformed", "fault", "preflight", "without scopes", "unknown reason"
]

SHOWN_OF_HASH: Final = 12
"""Hexadecimal digits of a configuration's SHA-256 in a log."""
_EXAMPLES: Final = 3
_EXAMPLE_CHARS: Final = 200
_MOST_GROUPS: Final = 10_000
_MOST_KEPT: Final = 20_000
_MOST_KEPT_CHARS: Final = 8_000_000

_OF_POLICY: Final = frozenset(
    {
        Reason.MISSING_CREDENTIAL, Reason.NO_ROUTE, Reason.INSUFFICIENT_SCOPE, Reason.WRONG_TENANT,
        Reason.WRONG_ENVIRONMENT, Reason.KEY_NOT_ACCEPTED, Reason.AMBIGUOUS_TARGET, Reason.METHOD_NOT_ALLOWED,
    }
)  # fmt: skip
_AFTER_POLICY: Final = frozenset(
    {
        Reason.QUOTA_EXCEEDED, Reason.LIMITER_UNAVAILABLE, Reason.UPSTREAM_UNREACHABLE, Reason.UPSTREAM_INVALID,
        Reason.UPSTREAM_TIMEOUT, Reason.UPSTREAM_BUSY, Reason.LOOP_DETECTED,
    }
)  # fmt: skip
"""Reasons that only arise after the policy has allowed the request."""
_OF_KEYS: Final = frozenset(
    {
        Reason.INVALID_KEY, Reason.EXPIRED_KEY, Reason.DISABLED_KEY, Reason.REVOKED_KEY, Reason.RETIRED_KEY,
        Reason.TOO_MANY_FAILURES, Reason.MALFORMED_CREDENTIAL,
    }
)  # fmt: skip
_FAULTS: Final = frozenset({Reason.STORE_UNAVAILABLE, Reason.INTERNAL})


@dataclass(slots=True)
class Count:
    """lines: number of log lines. requests: number of requests that these lines represent, if the log is a sample."""

    lines: int = 0
    requests: float = 0.0

    def add(self, request: RecordedRequest) -> None:
        self.lines += 1
        self.requests += 1.0 if request.sampled is None else request.weight


class Example(NamedTuple):
    """A recorded request, shortened, and without any key that it may contain."""

    time: str
    request_id: str
    method: str
    path: str


class GroupKey(NamedTuple):
    """The common properties of the requests of one group."""

    kind: Kind
    key_id: str | None
    tenant: str | None
    pass_through: bool
    old: Outcome
    new: Outcome


@dataclass(slots=True)
class Group:
    """Requests of one key whose outcome changes in the same way."""

    count: Count = field(default_factory=Count)
    examples: list[Example] = field(default_factory=list)

    def add(self, request: RecordedRequest, redaction: Redaction) -> None:
        self.count.add(request)
        if len(self.examples) < _EXAMPLES:
            texts = request.time, request.request_id, request.method, request.path_alone
            self.examples.append(Example(*(_shortened(redaction, text) for text in texts)))


def _shortened(redaction: Redaction, text: str) -> str:
    shown = redaction.text(text, longest=_EXAMPLE_CHARS + 1)
    return shown if len(shown) <= _EXAMPLE_CHARS else f"{shown[:_EXAMPLE_CHARS]}…"


class _Callers(NamedTuple):
    """The sender of a recorded request, under both configurations."""

    old: Caller
    new: Caller


class Disagreement(NamedTuple):
    """The recorded outcome of requests, and the outcome under the old configuration. None: the request passes."""

    recorded: Reason | None
    judged: Reason | None


class Replay:
    """Accepts requests one by one. Its memory is bounded, however long the log is."""

    def __init__(self, old: Config, new: Config) -> None:
        self._old_hash = old.sha256[:SHOWN_OF_HASH]
        self.judged = Count()
        self.changed: dict[Kind, Count] = {"opened": Count(), "closed": Count(), "refused otherwise": Count()}
        self.groups: dict[GroupKey, Group] = {}
        self.beyond = Count()
        """Changed requests beyond the groups that are kept."""
        self.not_judged: Counter[NotJudged] = Counter()
        self.disagreements: dict[Disagreement, Group] = {}
        self.elsewhere = 0
        """Lines that were logged under a configuration other than the old one."""
        self.over_quota = 0
        """Lines of requests that were over a quota which was only observed."""
        self.sampled = False
        """Whether lines were left out, so that counts are estimates."""
        self._old, self._new = Judge(old), Judge(new)
        self._observes = self._old.observes or self._new.observes
        self._redaction = Redaction((*key_prefixes(old), *key_prefixes(new)))
        self._callers: dict[tuple[object, ...], _Callers] = {}
        self._kept: dict[tuple[str, str, Caller], tuple[Outcome, Outcome]] = {}
        self._kept_chars = 0

    def add(self, request: RecordedRequest) -> None:
        if request.config is not None and request.config != self._old_hash:
            self.elsewhere += 1
        recorded = _recorded(request, wrong_keys=self._observes)
        if isinstance(recorded, str) and not isinstance(recorded, Reason):
            self.not_judged[recorded] += 1
            return
        old, new = self._judge(request)
        refused = old.reason is not None or old.would_deny is not None
        if request.method == "OPTIONS" and refused and _may_be_preflight(request):
            self.not_judged["preflight"] += 1
            return
        self.judged.add(request)
        if request.sampled is not None and request.sampled < 1:
            self.sampled = True
        self.over_quota += request.would_deny == Reason.QUOTA_EXCEEDED
        if old.reason is not recorded:
            self.disagreements.setdefault(Disagreement(recorded, old.reason), Group()).add(request, self._redaction)
        if old.reason is not new.reason:
            self._count(request, old, new)

    def _judge(self, request: RecordedRequest) -> tuple[Outcome, Outcome]:
        method, path, callers = request.method, request.path, self._callers_of(request)
        key = method, path, callers.old
        found = self._kept.get(key)
        if found is None:
            target = parsed(path)
            found = self._old.judge(method, target, callers.old), self._new.judge(method, target, callers.new)
            self._keep(key, found)
        return found

    def _callers_of(self, request: RecordedRequest) -> _Callers:
        wrong_key = _wrong_key(request)
        key = request.key_id, request.scopes, request.tenant, request.environment, request.credential, wrong_key
        found = self._callers.get(key)
        if found is None:
            if len(self._callers) >= _MOST_KEPT:
                self._callers.clear()
            foreign = request.key_id is None and request.credential == "pass_through"
            old, new = self._old.principal(request), self._new.principal(request)
            found = _Callers(Caller(old, foreign, wrong_key), Caller(new, foreign, wrong_key))
            self._callers[key] = found
        return found

    def _keep(self, key: tuple[str, str, Caller], outcomes: tuple[Outcome, Outcome]) -> None:
        if len(self._kept) >= _MOST_KEPT or self._kept_chars >= _MOST_KEPT_CHARS:
            self._kept.clear()
            self._kept_chars = 0
        self._kept[key] = outcomes
        self._kept_chars += len(key[1])

    def _count(self, request: RecordedRequest, old: Outcome, new: Outcome) -> None:
        kind: Kind = "closed" if old.reason is None else "opened" if new.reason is None else "refused otherwise"
        self.changed[kind].add(request)
        passes = request.credential == "pass_through"
        key = GroupKey(kind, request.key_id, request.tenant, passes, old, new)
        group = self.groups.get(key)
        if group is None:
            if len(self.groups) >= _MOST_GROUPS:
                self.beyond.add(request)
                return
            group = self.groups[key] = Group()
        group.add(request, self._redaction)

    def ordered(self) -> Sequence[tuple[GroupKey, Group]]:
        """Groups that open first, then those that close; the largest of each first."""
        kinds = list(self.changed)
        return sorted(self.groups.items(), key=lambda item: (kinds.index(item[0].kind), -item[1].count.requests))


def _wrong_key(request: RecordedRequest) -> Reason | None:
    """The reason why its key was not valid."""
    if request.key_id is not None or request.credential == "pass_through":
        return None
    reason = request.would_deny or request.reason
    return Reason(reason) if reason in NO_VALID_KEY else None


def _recorded(request: RecordedRequest, *, wrong_keys: bool) -> Reason | NotJudged | None:
    """Why the policy refused the request, None if the policy let it pass; or why that is not known.

    wrong_keys: whether a configuration forwards requests with a wrong key.
    """
    if (hidden := request.hidden) is not None:
        return hidden
    if request.key_id is not None and request.config is None and not request.scopes:
        return "without scopes"
    if request.path == "*":
        return "preflight"
    if request.reason is None or request.status < 400:
        return None
    try:
        reason = Reason(request.reason)
    except ValueError:
        return "unknown reason"
    if reason in _OF_POLICY or (reason is Reason.INVALID_KEY and request.credential == "pass_through"):
        return reason
    if reason in _AFTER_POLICY:
        return None
    if wrong_keys and _wrong_key(request) is not None:
        return reason
    return "wrong key" if reason in _OF_KEYS else "fault" if reason in _FAULTS else "malformed"


def _may_be_preflight(request: RecordedRequest) -> bool:
    """Whether it may be a preflight, whose requested method is not in the log."""
    answered = request.credential is None and request.reason is None and request.status == 204
    return answered and request.would_deny is None
