"""The Redis URLs that the configuration accepts. Imports no client library."""

import re
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import unquote

SCHEMES: Final = (
    "redis",
    "rediss",
    "redis+unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
_PORTS: Final = {"server": 6379, "cluster": 6379, "sentinel": 26379}
_MEANT: Final = {
    "unix": "redis+unix",
    "valkey": "redis",
    "valkeys": "rediss",
    "redis+tls": "rediss",
    "rediss+unix": "redis+unix",
    "sentinel": "redis+sentinel",
}
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?)(?::([0-9]{1,5}))?")
_FORM: Final = (
    "must be memory, redis://host:port/0, rediss://…, redis+unix:///path, redis+sentinel://… or redis+cluster://…"
)

Host = tuple[str, int]
"""Name or address, and port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisUrl:
    """A parsed URL. `hosts`: the server's, the sentinels', or some of a Cluster's nodes'. Its repr has no password."""

    kind: Literal["server", "sentinel", "cluster"] = "server"
    tls: bool = False
    hosts: tuple[Host, ...] = ()
    path: str = ""
    """The path of a Unix socket."""
    username: str = ""
    password: str = field(default="", repr=False)
    database: int = 0
    master: str = ""
    """The server's name at the sentinels."""

    def __str__(self) -> str:
        """For logs and people: without user and password."""
        if self.path:
            return f"redis+unix://{self.path}"
        scheme = ("rediss" if self.tls else "redis") + ("" if self.kind == "server" else f"+{self.kind}")
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"{scheme}://{hosts}{f'/{self.master}' if self.master else ''}"


def parse_redis_url(text: str) -> RedisUrl:
    """Raises ValueError, whose message contains nothing of the URL but its scheme."""
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in SCHEMES:
        meant = _MEANT.get(scheme)
        raise ValueError(f"{_FORM} (did you mean {meant}://?)" if meant and separator else _FORM)
    user, _, place = ("", "", rest) if rest.startswith("/") else rest.rpartition("@")
    if "?" in place or "#" in place:
        raise ValueError("must hold no query or fragment")
    username, password = _credentials(user)
    if scheme == "redis+unix":
        return RedisUrl(path=_socket(place), username=username, password=password)
    hosts, _, path = place.partition("/")
    kind: Literal["server", "sentinel", "cluster"] = "server"
    if scheme.endswith("+sentinel"):
        kind = "sentinel"
    elif scheme.endswith("+cluster"):
        kind = "cluster"
    master, database = _path(kind, path)
    return RedisUrl(
        kind=kind,
        tls=scheme.startswith("rediss"),
        hosts=_hosts(kind, hosts),
        username=username,
        password=password,
        database=database,
        master=master,
    )


def _credentials(text: str) -> tuple[str, str]:
    """`user:password`, `:password`, or nothing. A text without a colon is a password.

    The last @ of a URL ends them, so they may contain any character; a % begins an encoded one (RFC 3986).
    """
    if not text:
        return "", ""
    user, colon, password = text.partition(":")
    if not colon:
        user, password = "", text
    if not password:
        raise ValueError("has a user without a password")
    return unquote(user), unquote(password)


def _socket(path: str) -> str:
    if not path.startswith("/") or path.endswith("/"):
        raise ValueError("must be redis+unix:///absolute/path")
    return unquote(path)


def _path(kind: str, path: str) -> tuple[str, int]:
    """The sentinels' name of the server, and the database. A Cluster has only one database."""
    master = ""
    if kind == "sentinel":
        master, _, path = path.partition("/")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", master):
            raise ValueError("must name the server behind the sentinels: redis+sentinel://host:26379/mymaster")
    if not re.fullmatch(r"[0-9]{0,5}", path):
        raise ValueError("must end with the number of a database, or with nothing")
    if kind == "cluster" and path not in ("", "0"):
        raise ValueError("must name no database: a Cluster has one only")
    return master, int(path or 0)


def _hosts(kind: str, text: str) -> tuple[Host, ...]:
    hosts = [_host(part, _PORTS[kind]) for part in text.split(",")]
    if kind == "server" and len(hosts) > 1:
        raise ValueError("must be one host; several are redis+sentinel:// or redis+cluster://")
    return tuple(hosts)


def _host(text: str, port: int) -> Host:
    found = _HOST.fullmatch(text)
    number = int(found[2] or port) if found is not None else 0
    if found is None or not 0 < number < 65536:
        raise ValueError(_FORM)
    return found[1].strip("[]"), number
