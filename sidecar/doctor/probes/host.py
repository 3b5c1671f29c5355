"""This host as its kernel tells of it. Blocks: it asks the disk and the kernel."""

import fcntl
import os
import resource
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final

from sidecar.config.settings import Address
from sidecar.doctor.facts import HostSeen, ProcessSeen, Unseen

_SIOCGIFADDR: Final = 0x8915
_LISTENING: Final = "0A"


def host_seen(listen: Address, environ: Mapping[str, str]) -> HostSeen:
    return HostSeen(
        in_kubernetes="KUBERNETES_SERVICE_HOST" in environ,
        addresses=own_addresses(),
        uvloop=find_spec("uvloop") is not None,
        own=_own_process(),
        sidecar=listening_process(listen),
    )


def own_addresses() -> tuple[str, ...]:
    """Of every interface, without loopback and link-local ones."""
    found = dict.fromkeys((*_ipv4_addresses(), *_ipv6_addresses()))
    kept = [text for text in found if not (ip_address(text).is_loopback or ip_address(text).is_link_local)]
    return tuple(kept)


def _ipv4_addresses() -> Iterator[str]:
    """The first address of each interface (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                told = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                yield socket.inet_ntoa(told[20:24])


def _ipv6_addresses() -> Iterator[str]:
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
            yield str(IPv6Address(bytes.fromhex(line.split()[0])))


def listening_process(address: Address) -> ProcessSeen | Unseen:
    """The process that listens there, as far as this user may know of it."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(address)}
    if not sockets:
        return Unseen(reason=f"no process listens at {address}")
    for pid in _pids():
        with suppress(OSError):
            descriptors = f"/proc/{pid}/fd"
            if any(os.readlink(f"{descriptors}/{name}") in sockets for name in os.listdir(descriptors)):
                return _process(pid)
    return Unseen(reason=f"the process that listens at {address} belongs to somebody else")


def _listening_inodes(address: Address) -> Iterator[str]:
    """As proc_pid_net(5) describes the tables."""
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


def _process(pid: int) -> ProcessSeen:
    """Raises OSError."""
    status = os.stat(f"/proc/{pid}")
    lines = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
    [soft] = [line.split()[3] for line in lines if line.startswith("Max open files")]
    return ProcessSeen(pid=pid, uid=status.st_uid, open_files=None if soft == "unlimited" else int(soft))


def _own_process() -> ProcessSeen:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    return ProcessSeen(pid=os.getpid(), uid=os.geteuid(), open_files=None if unlimited else soft)
