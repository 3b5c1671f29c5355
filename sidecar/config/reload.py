"""Which file changes are noticed, and which options of a new configuration need a restart."""

import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

from msgspec import structs

from sidecar.config.build.config import Config
from sidecar.config.document import AdminSettings

# Whether a file changed, and whether a change can be noticed at all. Both block: they read the disk.


MOUNTS = "/proc/self/mountinfo"
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIdentity:
    """Changes when the file is written, replaced, or reached by another link. A missing file also has an identity."""

    real_path: str
    """After resolving symbolic links: Kubernetes changes a ConfigMap by pointing `..data` to another folder."""
    device: int = 0
    inode: int = 0
    changed_ns: int = 0
    """ctime, which cannot be set back: it changes with content, mode and owner."""
    size: int = -1


def identity_of(path: str) -> FileIdentity:
    real_path = os.path.realpath(path)
    try:
        status = os.stat(real_path)
    except (OSError, ValueError):
        return FileIdentity(real_path=real_path)
    return FileIdentity(
        real_path=real_path,
        device=status.st_dev,
        inode=status.st_ino,
        changed_ns=status.st_ctime_ns,
        size=status.st_size,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A line of /proc/self/mountinfo (proc(5))."""

    device: str
    """`major:minor`."""
    point: str
    kind: str
    """Type of the file system, such as `ext4`."""


def mounts_of(file: str = MOUNTS) -> list[Mount]:
    """The mounts visible to this process. Raises OSError."""
    lines = Path(file).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    parts = ((line.split(" "), line.partition(" - ")[2].split(" ")[0]) for line in lines if line.count(" ") > 4)
    return [Mount(device=words[2], point=_unescaped(words[4]), kind=kind) for words, kind in parts]


def _unescaped(point: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), point)


def is_mounted_alone(path: str, *, mounts: str = MOUNTS) -> bool:
    """Whether the file is a separate mount, like a `subPath` of Kubernetes: a replacement is then never noticed.

    mounts: as for `mounts_of`; False if there is no such file.
    """
    try:
        points = [mount.point for mount in mounts_of(mounts)]
    except OSError:
        return False
    return os.path.realpath(path) in points


_LIVE = frozenset(
    {
        "path",
        "mode",
        "limits",
        "upstream",
        "upstreams",
        "store_grace",
        "keys",
        "catalogue",
        "quotas",
        "plans",
        "routes",
        "cors",
        "unmatched",
        "method_not_allowed",
        "case_sensitive",
        "colon",
        "encoded_slash",
        "identity",
        "trusted_proxies",
        "forwarded_header",
        "errors",
        "default_error",
        "rate_limit_headers",
        "realm",
        "reload",
        "usage",
    }
)
"""Everything else is bound, opened or started once. TLS is turned on and off by a restart; its files may change."""
_AS_WRITTEN = {"store_usage": "store.usage", "store_replica": "store.replica"}


def without_restart(running: Config, wanted: Config) -> tuple[Config, tuple[str, ...]]:
    """`wanted` as far as it can take effect at once, and the options that keep their value until a restart."""
    # What is not compared is said about the file, not an option of it.
    options = (field.name for field in fields(Config) if field.compare)
    changed = (name for name in options if getattr(running, name) != getattr(wanted, name))
    kept = tuple(name for name in changed if name not in _LIVE and not _is_live(name, running, wanted))
    mixed = {name: getattr(running, name) for name in kept} | {"admin": _admin(running.admin, wanted.admin)}
    return replace(wanted, **mixed), tuple(_AS_WRITTEN.get(name, name) for name in kept)


def share_of(config: Config, workers: int) -> Config:
    """The share of one of `workers` processes in the limits that the configuration sets for all of them.

    `connections_per_address` is not divided: any of them may get the connections of one client.
    """
    limits = structs.replace(
        config.limits,
        connections=_share(config.limits.connections, workers),
        held_bytes=_share(config.limits.held_bytes, workers),
    )
    upstream, *others = (
        structs.replace(each, max_connections=_share(each.max_connections, workers))
        for each in config.every_upstream.values()
    )
    upstreams = dict(zip(config.upstreams, others, strict=True))
    return replace(config, limits=limits, upstream=upstream, upstreams=upstreams)


def _share(all_together: int, workers: int) -> int:
    return -(-all_together // workers)


def _is_live(name: str, running: Config, wanted: Config) -> bool:
    if name == "admin" and running.admin and wanted.admin:
        return running.admin.listen == wanted.admin.listen
    if name == "drain":
        return running.drain.socket == wanted.drain.socket
    return name == "tls" and running.tls is not None and wanted.tls is not None


def _admin(running: AdminSettings | None, wanted: AdminSettings | None) -> AdminSettings | None:
    """A new address needs a restart; new tokens do not, and a removed token must lose its access at once."""
    if running is None:
        return None
    if wanted is None:
        return structs.replace(running, tokens=())
    return structs.replace(wanted, listen=running.listen)
