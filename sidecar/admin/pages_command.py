"""A curl line that a key opens a door with."""

import shlex
from collections.abc import Iterable, Iterator

from sidecar.config.settings import Config
from sidecar.core.model import EVERY, ApiKey, Route, Source
from sidecar.core.pattern import is_param, parse_pattern


def command_for(config: Config, key: ApiKey, text: str, routes: Iterable[Route], *, clients: str) -> str:
    """The line; empty where no listener or no route is known. text: the plaintext. clients: URL of the listener."""
    route = min((route for route in routes if not route.policy.public), key=_rank, default=None)
    if route is None or not clients:
        return ""
    return " ".join(["curl", *_arguments(config.keys.sources[0], route, key, text, clients)])


def _rank(route: Route) -> tuple[bool, bool, int]:
    """Reading before writing, nothing to fill in before something, short before long."""
    return _method(route) != "GET", "{" in route.pattern, len(route.pattern)


def _method(route: Route) -> str:
    return "GET" if route.methods & {"GET", EVERY} else min(route.methods)


def _arguments(source: Source, route: Route, key: ApiKey, text: str, clients: str) -> Iterator[str]:
    yield "-i"
    if (method := _method(route)) != "GET":
        yield f"-X {method}"
    address = clients + _path(route, key)
    match source.kind:
        case "header":
            value = f"{source.scheme} {text}" if source.scheme else text
            yield f"-H {shlex.quote(f'{source.name}: {value}')}"
        case "cookie":
            yield f"-H {shlex.quote(f'Cookie: {source.name}={text}')}"
        case "query":
            address += f"?{source.name}={text}"
    yield shlex.quote(address)


def _path(route: Route, key: ApiKey) -> str:
    """A path that the route's pattern matches, and this key may ask for."""
    policy, filled = route.policy, []
    for segment in parse_pattern(route.pattern).segments:
        bound = {f"{{{policy.tenant_param}}}": key.tenant, f"{{{policy.environment_param}}}": key.environment}
        value = bound.get(segment, "1") if is_param(segment) else segment
        filled.append("1" if value in (None, EVERY) else str(value))
    return "/" + "/".join(filled)
