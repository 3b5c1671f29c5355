"""A question put to the gate as the request that it is about. Nothing is taken from any quota."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sidecar.config.settings import Config
from sidecar.core.apikey import Secret
from sidecar.core.model import EVERY, Allow, ApiKey, Bucket, Decision, Deny, Headers, RequestHead, Taken
from sidecar.explain.story import Line, told
from sidecar.gate.gate import Gate, KeyFinder
from sidecar.gate.principals import Known
from sidecar.keyrules import key_format
from sidecar.keys.cache import MISS, Miss
from sidecar.limiter.port import Limiter

_HOST = (b"Host", b"localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What would come of this request? With `key`, it carries a key: `secret`, or a made-up one of the right form."""

    method: str
    target: str
    """As on the wire: printable ASCII."""
    key: ApiKey | None = None
    secret: Secret | None = None
    """What the client presents; with `key` None, a key that nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The decision, the status that the client would see (None where the upstream's), and the way to it."""

    decision: Decision
    status: int | None
    lines: Sequence[Line]


async def explain(
    question: Question,
    config: Config,
    gate_of: Callable[[KeyFinder, Limiter], Gate],
    limiter: Limiter,
    *,
    randbelow: Callable[[int], int],
) -> Explanation:
    """limiter: is looked at and not taken from. randbelow: as `secrets.randbelow`."""
    text = _presented(question, config, randbelow)
    target = _with_key_in_query(config, question.target, text) if text else question.target
    headers = (_HOST, *(_presenting(config, text) if text else ()))
    gate = gate_of(_OneKey(question.key), _Peeking(limiter))
    head = RequestHead(method=question.method, target=target, headers=headers, peer="127.0.0.1")
    decision = await gate.decide(head)
    lines = [_without(text, line) for line in told(config, head, decision, gate)]
    return Explanation(decision=decision, status=_status(gate, decision), lines=lines)


def _presented(question: Question, config: Config, randbelow: Callable[[int], int]) -> str:
    if question.secret is not None:
        return question.secret.text
    return "" if question.key is None else _made_up(config, question.key, randbelow)


def _without(secret: str, line: Line) -> Line:
    """Where the upstream gets the key, what it gets is not shown."""
    return line._replace(text=line.text.replace(secret, "(the key)")) if secret else line


def _status(gate: Gate, decision: Decision) -> int | None:
    match decision:
        case Deny():
            return gate.answer(decision).status
        case Allow() if decision.route.policy.respond is not None:
            return gate.respond(decision).status
        case _:
            return None


def _made_up(config: Config, key: ApiKey, randbelow: Callable[[int], int]) -> str:
    form = key_format(config)
    prefixes = config.keys.environments
    environment = key.environment or EVERY
    return form.make(prefixes.get(environment) or next(iter(prefixes.values())), randbelow)


def _presenting(config: Config, text: str) -> Headers:
    source = config.keys.sources[0]
    match source.kind:
        case "header":
            value = f"{source.scheme} {text}" if source.scheme else text
            return ((source.name.encode(), value.encode("utf-8", "surrogateescape")),)
        case "cookie":
            return ((b"Cookie", f"{source.name}={text}".encode("utf-8", "surrogateescape")),)
        case "query":
            return ()


def _with_key_in_query(config: Config, target: str, text: str) -> str:
    source = config.keys.sources[0]
    if source.kind != "query":
        return target
    return f"{target}{'&' if '?' in target else '?'}{source.name}={text}"


class _OneKey:
    """A store of one key, which answers to every plaintext."""

    def __init__(self, key: ApiKey | None) -> None:
        self._known = None if key is None else Known(key, generation=0)

    def peek(self, secret_digest: bytes) -> Literal[Miss.MISS]:
        return MISS

    async def find(self, secret_digest: bytes, candidates: Callable[[], Mapping[bytes, str]]) -> Known | None:
        return self._known


class _Peeking:
    """A limiter that is looked at and not taken from."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    async def take(self, buckets: Sequence[Bucket], now: float) -> Taken:
        return await self._limiter.peek(buckets, now)

    async def peek(self, buckets: Sequence[Bucket], now: float) -> Taken:
        return await self._limiter.peek(buckets, now)
