"""Probes of this host: files, environment, addresses, processes and the key store. They block on disk and kernel."""

import asyncio
import fcntl
import math
import os
import resource
import shutil
import socket
import ssl
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

from sidecar.config.build.config import Config
from sidecar.config.build.policy import VARIABLE
from sidecar.config.fields import Address
from sidecar.config.load import Environment
from sidecar.config.reload import MOUNTS, is_mounted_alone, mounts_of
from sidecar.config.store_url import file_path, is_file, is_sqlite, password_of, sqlite_path
from sidecar.core.apikey import PLAIN, Hasher, peppers_from
from sidecar.doctor.facts import (
    CertificateFacts,
    DiskFacts,
    FileFacts,
    FilesFacts,
    HostFacts,
    KeyFileFacts,
    Latency,
    ProcessFacts,
    ReplicaFacts,
    SecretsFacts,
    StoreFacts,
    Unknown,
)
from sidecar.gate.compile import line_rules
from sidecar.keys.ports import Actor, AuditState, StoreUnavailable
from sidecar.keys.transfer.importer import InvalidFile
from sidecar.proxy.tls import describe, listener_context
from sidecar.store.file import read_file
from sidecar.store.sqlite.inspect import StoreReport, inspect, lock_seconds
from sidecar.store.store import NO_LIBRARY, Store

# Validity of certificates. The standard library decodes only certificates that it trusts.

_EXPLICIT_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def certificate_of(path: str) -> CertificateFacts | Unknown:
    """Read the first certificate in a PEM file."""
    try:
        text = Path(path).read_text(encoding="ascii", errors="replace")
        start, end = text.index(_BEGIN), text.index(_END)
        begins_at, ends_at = validity_of(ssl.PEM_cert_to_DER_cert(text[start : end + len(_END)]))
    except OSError as error:
        return Unknown(reason=f"{path}: {error.strerror}")
    except ValueError:
        return Unknown(reason=f"{path} contains no readable certificate")
    return CertificateFacts(path=path, begins_at=begins_at, ends_at=ends_at)


def validity_of(der: bytes) -> tuple[float, float]:
    """Read notBefore and notAfter of a certificate (RFC 5280 section 4.1), in Unix seconds. Raises ValueError."""
    _, certificate, _ = _element(der)
    _, rest, _ = _element(certificate)
    tag, _, after = _element(rest)
    rest = after if tag == _EXPLICIT_VERSION else rest
    for _ in ("serialNumber", "signature", "issuer"):
        _, _, rest = _element(rest)
    _, validity, _ = _element(rest)
    first_tag, first, rest = _element(validity)
    second_tag, second, _ = _element(rest)
    return _time(first_tag, first), _time(second_tag, second)


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Return tag, content and the remaining bytes (X.690 section 8.1). Raises ValueError."""
    if len(data) < 2:
        raise ValueError("not DER")
    start, length = 2, data[1]
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if len(data) < start + length:
        raise ValueError("not DER")
    return data[0], data[start : start + length], data[start + length :]


def _time(tag: int, text: bytes) -> float:
    if tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError("not a time")
    digits = text.decode("ascii")
    if tag == _UTC_TIME:
        # Two digits are a year from 1950 to 2049 (RFC 5280 section 4.1.2.5.1).
        digits = f"{'19' if digits[:2] >= '50' else '20'}{digits}"
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


# Files.


def files_facts(config: Config) -> FilesFacts:
    store = sqlite_path(config.store) if is_sqlite(config.store) else ""
    folder = os.path.dirname(store) if store else ""
    beside = (file_facts(store + ending) for ending in ("", "-wal", "-shm")) if store else ()
    return FilesFacts(
        config=file_facts(config.path),
        config_alone=is_mounted_alone(config.path),
        literal_secrets=_literal_secrets(config),
        store=tuple(file for file in beside if isinstance(file, FileFacts)),
        store_folder=file_facts(folder) if folder else Unknown(reason="the store is not a file"),
        disk=disk_of(folder) if folder else Unknown(reason="the store is not a file"),
        tls_keys=tuple(map(file_facts, _tls_files(config, "key"))),
        certificates=tuple(map(certificate_of, _tls_files(config, "certificate"))),
        listener_tls=_why_no_tls(config),
    )


def file_facts(path: str) -> FileFacts | Unknown:
    try:
        status = os.stat(path)
    except OSError as error:
        return Unknown(reason=f"{path}: {error.strerror}")
    return FileFacts(path=path, mode=stat.S_IMODE(status.st_mode), uid=status.st_uid)


def disk_of(folder: str, *, mounts: str = MOUNTS) -> DiskFacts | Unknown:
    """Return the file system that holds `folder`. mounts: as for `mounts_of`."""
    try:
        device = os.stat(folder).st_dev
        usage = shutil.disk_usage(folder)
        mounted = mounts_of(mounts)
    except OSError as error:
        return Unknown(reason=f"{folder}: {error.strerror}")
    number = f"{os.major(device)}:{os.minor(device)}"
    kinds = [mount.kind for mount in mounted if mount.device == number]
    return DiskFacts(kind=kinds[-1] if kinds else "", free=usage.free, total=usage.total)


def _tls_files(config: Config, which: str) -> list[str]:
    upstreams = (upstream.tls for upstream in config.every_upstream.values())
    settings = [found for found in (config.tls, *upstreams) if found is not None]
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
    """Count the secrets that the configuration file holds in plain text, not by a variable."""
    try:
        text = Path(config.path).read_bytes()
    except OSError:
        return 0
    passwords = (password_of(url).encode() for url in (config.store, config.store_replica))
    secrets = {*(keys.pepper for keys in config.keys.imported), *passwords}
    return sum(1 for secret in secrets if secret and secret in text)


# Secrets of the environment. Only their strength leaves these functions.

_PEPPER = "SIDECAR_PEPPER"


def secrets_facts(config: Config, environ: Mapping[str, str]) -> SecretsFacts:
    try:
        found = Environment(environ)
        peppers, problem, pepper = peppers_from(found), "", found.get(_PEPPER, "")
    except ValueError as error:
        peppers, problem, pepper = (), str(error), ""
    previous = peppers[1:]
    return SecretsFacts(
        admin_token_bits=_bits_or_none(environ.get(VARIABLE, "")),
        pepper_bits=_bits_or_none(pepper),
        pepper_problem=problem,
        previous_algorithm=Hasher(previous).newest if previous else None,
        algorithms=Hasher(peppers, config.keys.imported).algorithms,
    )


def _bits_or_none(text: str) -> float | None:
    return bits(text) if text else None


def bits(text: str) -> float:
    """Return an upper bound: every character was chosen among the distinct ones that occur in `text`."""
    return len(text) * math.log2(len(set(text))) if text else 0.0


# Addresses and processes.

_SIOCGIFADDR: Final = 0x8915
_LISTENING: Final = "0A"


def host_facts(listen: Sequence[Address], environ: Mapping[str, str]) -> HostFacts:
    return HostFacts(
        in_kubernetes="KUBERNETES_SERVICE_HOST" in environ,
        addresses=own_addresses(),
        uvloop=find_spec("uvloop") is not None,
        own=_own_process(),
        sidecar=listening_process(listen),
    )


def own_addresses() -> tuple[str, ...]:
    """Return the addresses of every interface, without loopback and link-local ones."""
    found = dict.fromkeys((*_ipv4_addresses(), *_ipv6_addresses()))
    kept = [text for text in found if not (ip_address(text).is_loopback or ip_address(text).is_link_local)]
    return tuple(kept)


def _ipv4_addresses() -> Iterator[str]:
    """Yield the first IPv4 address of each interface (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(query.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                yield socket.inet_ntoa(answer[20:24])


def _ipv6_addresses() -> Iterator[str]:
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
            yield str(IPv6Address(bytes.fromhex(line.split()[0])))


def listening_process(addresses: Sequence[Address]) -> ProcessFacts | Unknown:
    """Find the process that listens on one of them. Processes of other users are visible only to root."""
    named = ", ".join(map(str, addresses))
    sockets = {f"socket:[{inode}]" for address in addresses for inode in _listening_inodes(address)}
    if not sockets:
        return Unknown(reason=f"no process listens on {named}")
    for pid in _pids():
        with suppress(OSError):
            descriptors = f"/proc/{pid}/fd"
            if any(os.readlink(f"{descriptors}/{name}") in sockets for name in os.listdir(descriptors)):
                return _process(pid)
    return Unknown(reason=f"the process that listens on {named} belongs to another user")


def _listening_inodes(address: Address) -> Iterator[str]:
    """Yield the socket inodes; proc_pid_net(5) describes the tables."""
    tables = ("/proc/net/unix",) if address.path else ("/proc/net/tcp", "/proc/net/tcp6")
    for table in tables:
        with suppress(OSError):
            for line in Path(table).read_text(encoding="utf-8", errors="replace").splitlines()[1:]:
                fields = line.split()
                if address.path and fields[-1] == address.path:
                    yield fields[6]
                elif not address.path and fields[3] == _LISTENING and _port(fields[1]) == address.port:
                    yield fields[9]


def _port(local_address: str) -> int:
    return int(local_address.rpartition(":")[2], 16)


def _pids() -> list[int]:
    with suppress(OSError):
        return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    return []


def _process(pid: int) -> ProcessFacts:
    """Read the process's facts from /proc. Raises OSError."""
    status = os.stat(f"/proc/{pid}")
    lines = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
    [soft] = [line.split()[3] for line in lines if line.startswith("Max open files")]
    return ProcessFacts(pid=pid, uid=status.st_uid, open_files=None if soft == "unlimited" else int(soft))


def _own_process() -> ProcessFacts:
    """As a sidecar: it raises the soft limit to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    return ProcessFacts(pid=os.getpid(), uid=os.geteuid(), open_files=None if unlimited else hard)


# Stores.


def key_file_facts(config: Config, now: float, environ: Mapping[str, str]) -> KeyFileFacts | Unknown | None:
    """Read the file as a sidecar would. now: Unix seconds."""
    if not is_file(config.store):
        return None
    path = file_path(config.store)
    found = KeyFileFacts(path=path, alone=is_mounted_alone(path), keeps_usage=bool(config.store_usage))
    try:
        hasher = Hasher(peppers_from(Environment(environ)), config.keys.imported)
        rules = line_rules(config, hasher, now=int(now * 1_000_000), actor=Actor(name="doctor"))
        return replace(found, records=len(read_file(path, rules)))
    except OSError as error:
        return replace(found, problems=(f"{path}: {error.strerror}",))
    except InvalidFile as error:
        return replace(found, problems=tuple(f"{path}:{problem}" for problem in error.problems))
    except ValueError as error:  # From the peppers, which have their own check.
        return Unknown(reason=str(error))


_TRIES: Final = 20
_QUICK_ROWS: Final = 100_000
"""An audit with more rows is verified only with --deep."""
_UNKNOWN: Final = {bytes(32): PLAIN}


Opener = Callable[[str], AbstractAsyncContextManager[Store]]


async def store_facts(config: Config, now: float, open_store: Opener, *, deep: bool) -> StoreFacts | Unknown:
    """now: Unix seconds; open_store takes the store's URL; deep: verify the audit, however long it is."""
    if is_file(config.store):
        return Unknown(reason="keys are in a file")
    engine = _sqlite(sqlite_path(config.store)) if is_sqlite(config.store) else _postgresql(config.store)
    try:
        found = await engine.inspect(int(now * 1_000_000), config.keys.max_age_seconds)
    except StoreUnavailable as error:
        return Unknown(reason=str(error))
    if found.version != found.newest_version or found.journal not in ("wal", ""):
        # Opening it would migrate it while a sidecar may be running on it.
        unopened = Unknown(reason="the store has another schema version or journal mode than this program uses")
        return StoreFacts(report=found, latencies=unopened, audit=unopened)
    return await _opened(config.store, engine.lock_seconds, found, open_store, deep=deep)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Engine:
    """Engine-specific queries of a store. Both raise StoreUnavailable."""

    inspect: Callable[[int, float | None], Awaitable[StoreReport]]
    """Takes the time in microseconds, and the age in seconds above which a key is too old."""
    lock_seconds: Callable[[], Awaitable[float]]


def _sqlite(path: str) -> _Engine:
    return _Engine(
        inspect=lambda now, age: asyncio.to_thread(inspect, path, now=now, max_age_seconds=age),
        lock_seconds=lambda: asyncio.to_thread(lock_seconds, path),
    )


def _postgresql(url: str) -> _Engine:
    async def inspected(now: int, age: float | None) -> StoreReport:
        try:
            from sidecar.store.postgresql import inspect as postgresql
        except ImportError as error:
            raise StoreUnavailable(NO_LIBRARY) from error
        return await postgresql.inspect(url, now=now, max_age_seconds=age)

    async def locked() -> float:
        from sidecar.store.postgresql import inspect as postgresql

        return await postgresql.lock_seconds(url)

    return _Engine(inspect=inspected, lock_seconds=locked)


async def replica_facts(config: Config) -> ReplicaFacts | Unknown | None:
    if not config.store_replica:
        return None
    try:
        from sidecar.store.postgresql import inspect as postgresql

        is_standby, in_step, seconds = await postgresql.standby(config.store, config.store_replica)
    except ImportError:
        return Unknown(reason=NO_LIBRARY)
    except StoreUnavailable as error:
        return Unknown(reason=str(error))
    return ReplicaFacts(is_standby=is_standby, in_step=in_step, seconds=seconds)


async def _opened(
    url: str, lock: Callable[[], Awaitable[float]], found: StoreReport, open_store: Opener, *, deep: bool
) -> StoreFacts:
    audit: AuditState | Unknown = Unknown(reason="the store is unusable")
    try:
        async with open_store(url) as store:
            audit = await _audit(store, found.audit_rows, deep=deep)
            return StoreFacts(report=found, latencies=await _latencies(store, lock), audit=audit)
    except StoreUnavailable as error:
        return StoreFacts(report=found, latencies=(), audit=audit, trouble=str(error))


async def _latencies(store: Store, lock: Callable[[], Awaitable[float]]) -> tuple[Latency, ...]:
    async def generation() -> float:
        started = perf_counter()
        store.keys.generation()
        return perf_counter() - started

    async def find() -> float:
        started = perf_counter()
        await store.keys.find(_UNKNOWN)
        return perf_counter() - started

    return (
        await _timed("change check", generation),
        await _timed("key lookup", find),
        await _timed("write lock", lock),
    )


async def _timed(operation: str, once: Callable[[], Awaitable[float]]) -> Latency:
    seconds = [await once() for _ in range(_TRIES)]
    return Latency(operation=operation, median=median(seconds), slowest=max(seconds))


async def _audit(store: Store, rows: int, *, deep: bool) -> AuditState | Unknown:
    if rows > _QUICK_ROWS and not deep:
        return Unknown(reason=f"verifying {rows:,} rows takes a while: run doctor with --deep")
    return await store.audit.verify()
