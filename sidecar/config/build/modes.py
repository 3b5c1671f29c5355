"""Which parts of a configuration are only observed: refusals are counted and logged, and requests pass (`mode:
observe`).

The most specific setting decides, but `enforce` always wins. A route's mode is its own, or that of its group, or that
of `defaults`. If the route, the exhausted quota or a missing scope says `enforce`, a refusal is enforced. Otherwise it
is observed if the route says so, or every missing scope, or the quota, or if `keys.observe` names the key, or if the
file says `mode: observe`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from sidecar.config.build.config import Config
from sidecar.core.model import ENFORCE, OBSERVE, ApiKey, Mode, Route

_SHOWN: Final = 5


class Part(NamedTuple):
    """A scope or a quota, as text, and its mode."""

    name: str
    mode: Mode | None


class Modes:
    """The modes of one configuration."""

    def __init__(self, config: Config) -> None:
        self.unmatched = replace(config.unmatched, policy=replace(config.unmatched.policy, charges=()))
        """The route for unmatched requests. Its quotas are shown, and never taken from."""
        self._everything = config.mode == OBSERVE
        self._keys = frozenset(config.keys.observe)
        self._scopes = {name: scope.mode for name, scope in config.catalogue.scopes.items()}

    def of_scopes(self, names: Iterable[str]) -> list[Part]:
        return [Part(f"scope {name}", self._scopes.get(name)) for name in sorted(names)]

    def because(self, route: Route, key: ApiKey | None, parts: Iterable[Part] = ()) -> str:
        """Why a refusal on `route` is only observed, as text; empty if it is enforced. parts: the causes of the
        refusal.

        If nobody may pass, or the sidecar itself responds, every refusal is enforced.
        """
        policy, parts = route.policy, tuple(parts)
        if policy.deny or policy.respond is not None or ENFORCE in (policy.mode, *(part.mode for part in parts)):
            return ""
        if policy.mode == OBSERVE:
            return "the mode of the route is observe"
        if parts and all(part.mode == OBSERVE for part in parts):
            return f"the mode of {', '.join(part.name for part in parts)} is observe"
        if key is not None and not self._keys.isdisjoint((key.id, key.prefix)):
            return "keys.observe names the key"
        return "the mode of the file is observe" if self._everything else ""


def observing(config: Config, *, keys: bool = True) -> tuple[str, ...]:
    """What is observed, as text; empty if every refusal is enforced. keys: whether to name keys, too."""
    named = [f"key {name}" for name in config.keys.observe] if keys else []
    return (*_observing(config), *named)


def in_one_line(found: Sequence[str]) -> str:
    """The result of `observing`, in one line of limited length."""
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _observing(config: Config) -> Iterator[str]:
    if config.mode == OBSERVE:
        enforced = sum(route.policy.mode == ENFORCE for route in config.routes)
        yield "everything" + (f" but {enforced} of {len(config.routes)} routes" if enforced else "")
    yield from (f"`{route.name}`" for route in config.routes if route.policy.mode == OBSERVE)
    if config.unmatched.policy.mode == OBSERVE:
        yield "paths that no route names"
    yield from (f"scope {name}" for name, scope in config.catalogue.scopes.items() if scope.mode == OBSERVE)
    yield from (f"quota {name}" for name, quota in config.quotas.items() if quota.mode == OBSERVE)
