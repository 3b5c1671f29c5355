"""`sidecar explain`: the gate itself, asked about one request."""

import asyncio
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import click

from sidecar.app import make_gate
from sidecar.cli.configs import config_option, load_or_exit
from sidecar.cli.failures import Failure, reported
from sidecar.cli.key_tasks import hasher_of_environ
from sidecar.cli.stores import open_store
from sidecar.cli.story import told
from sidecar.config.model import Config
from sidecar.core.apikey import KeyFormat
from sidecar.core.model import EVERY, ApiKey, Bucket, Headers, RequestHead, Taken
from sidecar.keys.cache import MISS, Miss
from sidecar.keys.lifecycle import Lifecycle
from sidecar.limiter.memory import MemoryLimiter

_HOST = "localhost"


@click.command("explain")
@config_option
@click.argument("method")
@click.argument("target")
@click.option("--key", "name", metavar="ID", help="Key id or prefix; - reads the key itself from stdin.")
@click.option("--store", metavar="URL", help="Key store instead of the configured one.")
def explain_command(config_path: str, method: str, target: str, name: str | None, store: str | None) -> None:
    """Say what the sidecar would do with a request, and why. Takes nothing from any quota.

    \b
    Example:
      sidecar explain -c sidecar.yaml GET /v1/streams/7 --key hv_live_3fTq
      echo "$KEY" | sidecar explain -c sidecar.yaml DELETE /v1/streams/7 --key -
    """
    config = load_or_exit(config_path, {"store": store})
    with reported():
        lines = asyncio.run(_explain(config, method, target, name))
    click.echo("\n".join(lines))


async def _explain(config: Config, method: str, target: str, name: str | None) -> list[str]:
    limiter = MemoryLimiter()
    finder = OneKey(None)
    headers: Headers = ((b"Host", _HOST.encode()),)
    if name is not None:
        finder, presented = await _named(config, limiter, name)
        headers += _presenting(config, presented)
        target = _with_key_in_query(config, target, presented)
    gate = make_gate(config, finder, _Peeking(limiter), hasher_of_environ())
    head = RequestHead(method=method, target=target, headers=headers, peer="127.0.0.1")
    decision = await gate.decide(head)
    return told(config, head, decision, gate)


async def _named(config: Config, limiter: MemoryLimiter, name: str) -> tuple["OneKey", str]:
    """The key that `name` means, and a plaintext for the gate: the given one, or a made-up one of the right form."""
    presented = sys.stdin.readline().strip() if name == "-" else None
    async with open_store(config.store) as store:
        limiter.restore(await store.load_quota_states(), time.time())
        keys = Lifecycle(store, hasher_of_environ(), clock=time.time, randbelow=secrets.randbelow)
        key = await (keys.find_by(name) if presented is None else keys.find_by_secret(presented))
    if presented is not None:
        return OneKey(key), presented
    if key is None:
        raise Failure(f"no key {name!r}; see `sidecar keys list`")
    form = KeyFormat(length=config.keys.length, checksum_length=config.keys.checksum_length)
    return OneKey(key), form.make(_prefix_of(config, key), secrets.randbelow)


def _prefix_of(config: Config, key: ApiKey) -> str:
    prefixes = config.keys.environments
    return prefixes.get(key.environment or EVERY) or next(iter(prefixes.values()))


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


class OneKey:
    """A store of one key, which answers to every plaintext."""

    def __init__(self, key: ApiKey | None) -> None:
        self._key = key

    def peek(self, secret_digest: bytes) -> Literal[Miss.MISS]:
        return MISS

    async def find(self, secret_digest: bytes, candidates: Callable[[], Mapping[bytes, str]]) -> ApiKey | None:
        return self._key


class _Peeking:
    """A limiter that is looked at and not taken from."""

    def __init__(self, limiter: MemoryLimiter) -> None:
        self._limiter = limiter

    async def take(self, buckets: Sequence[Bucket], now: float) -> Taken:
        return await self._limiter.peek(buckets, now)

    async def peek(self, buckets: Sequence[Bucket], now: float) -> Taken:
        return await self._limiter.peek(buckets, now)
