"""The installation's files. Blocks: it asks the disk."""

import os
import shutil
import stat
from pathlib import Path

from sidecar.config.addresses import sqlite_path
from sidecar.config.settings import Config
from sidecar.config.watch import is_mounted_alone
from sidecar.doctor.certificates import certificate_of
from sidecar.doctor.facts import DiskSeen, FileSeen, FilesSeen, Unseen
from sidecar.proxy.tls import describe, listener_context

_MOUNTS = "/proc/self/mountinfo"


def files_seen(config: Config) -> FilesSeen:
    store = sqlite_path(config.store) if config.store.startswith("sqlite:") else ""
    folder = os.path.dirname(store) if store else ""
    beside = (file_seen(store + ending) for ending in ("", "-wal", "-shm")) if store else ()
    return FilesSeen(
        config=file_seen(config.path),
        config_alone=is_mounted_alone(config.path),
        literal_secrets=_literal_secrets(config),
        store=tuple(file for file in beside if isinstance(file, FileSeen)),
        store_folder=file_seen(folder) if folder else Unseen(reason="the store is no file"),
        disk=disk_of(folder) if folder else Unseen(reason="the store is no file"),
        tls_keys=tuple(map(file_seen, _tls_files(config, "key"))),
        certificates=tuple(map(certificate_of, _tls_files(config, "certificate"))),
        listener_tls=_why_no_tls(config),
    )


def file_seen(path: str) -> FileSeen | Unseen:
    try:
        status = os.stat(path)
    except OSError as error:
        return Unseen(reason=f"{path}: {error.strerror}")
    return FileSeen(path=path, mode=stat.S_IMODE(status.st_mode), uid=status.st_uid)


def disk_of(folder: str, *, mounts: str = _MOUNTS) -> DiskSeen | Unseen:
    """The file system that holds `folder`. mounts: a file as proc(5) describes `/proc/self/mountinfo`."""
    try:
        device = os.stat(folder).st_dev
        usage = shutil.disk_usage(folder)
        lines = Path(mounts).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return Unseen(reason=f"{folder}: {error.strerror}")
    number = f"{os.major(device)}:{os.minor(device)}"
    kinds = [line.partition(" - ")[2].split(" ")[0] for line in lines if line.split(" ")[2:3] == [number]]
    return DiskSeen(kind=kinds[-1] if kinds else "", free=usage.free, total=usage.total)


def _tls_files(config: Config, which: str) -> list[str]:
    settings = [found for found in (config.tls, config.upstream.tls) if found is not None]
    return [path for path in (getattr(one, which) for one in settings) if path]


def _why_no_tls(config: Config) -> str:
    if config.tls is None:
        return ""
    try:
        listener_context(config.tls)
    except OSError as error:
        return describe(error)
    return ""


def _literal_secrets(config: Config) -> int:
    """Peppers of keys made elsewhere that are not the value of a variable but stand in the file itself."""
    try:
        text = Path(config.path).read_bytes()
    except OSError:
        return 0
    return sum(1 for keys in config.keys.imported if keys.pepper and keys.pepper in text)
