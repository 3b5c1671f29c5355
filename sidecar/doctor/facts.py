"""What was gathered of an installation. Secrets are weighed where they are read; only their weight is here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sidecar.config.build.config import Config
from sidecar.config.fields import Address
from sidecar.keys.ports import AuditState
from sidecar.store.sqlite.inspect import StoreReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """What could not be looked at, and why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """A file or folder: its permission bits (sticky and set-id bits too) and its owner."""

    path: str
    mode: int
    uid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """A PEM file's first certificate, and when it begins and ends (Unix seconds)."""

    path: str
    begins_at: float
    ends_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSeen:
    """The file system below the store: its type, and its bytes."""

    kind: str
    free: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesSeen:
    """The configuration's file, the store's, and those that hold secrets."""

    config: FileFacts | Unknown
    config_alone: bool
    """It is a mount of its own (`subPath`)."""
    literal_secrets: int
    """How many secrets stand in it as they are."""
    store: tuple[FileFacts, ...]
    """The database, and beside it its -wal and -shm where they are."""
    store_folder: FileFacts | Unknown
    disk: DiskSeen | Unknown
    tls_keys: tuple[FileFacts | Unknown, ...]
    certificates: tuple[CertificateFacts | Unknown, ...]
    listener_tls: str
    """Why the listener's files cannot be used; empty where they can, or there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSeen:
    """A process: its id, user, and how many files it may open (None: as many as it likes)."""

    pid: int
    uid: int
    open_files: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """Where this runs. `sidecar`: the process that listens at the data address; `own`: this one."""

    in_kubernetes: bool
    addresses: tuple[str, ...]
    """This host's, without loopback and link-local ones."""
    uvloop: bool
    own: ProcessSeen
    sidecar: ProcessSeen | Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsSeen:
    """Secrets of the environment by their weight: bits at most, as their length and variety tell. None: not set."""

    admin_token_bits: float | None
    pepper_bits: float | None
    pepper_problem: str
    """Why the peppers cannot be used; empty where they can."""
    previous_algorithm: str | None
    """Algorithm of keys under the previous pepper."""
    algorithms: frozenset[str]
    """Algorithms that can be verified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSeen:
    """The upstream took a connection."""

    seconds: float
    certificate_ends_at: float | None
    clock_ahead: float | Unknown
    """Seconds that its Date is ahead of our clock."""


Location = Literal["unix", "loopback", "this host", "elsewhere"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BypassProbe:
    """Where the upstream is, and at which other addresses of this host something answers on its port."""

    location: Location
    tried: tuple[str, ...] = ()
    answered: tuple[Address, ...] = ()
    socket: FileFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long some tries of one thing took, in seconds."""

    operation: str
    median: float
    slowest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSeen:
    """The key store."""

    look: StoreReport
    latencies: tuple[Latency, ...] | Unknown
    audit: AuditState | Unknown
    trouble: str = ""
    """Why it could not be used; empty where it could."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningSeen:
    """What the running sidecar says of itself."""

    seconds: float
    ready: bool
    lines: tuple[str, ...]
    """Of `/readyz?verbose`."""
    metrics: Mapping[str, float]
    """Samples by name with labels, as in the exposition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All of it. `now` in Unix seconds; `grace_seconds`: how long the platform waits after SIGTERM, where known."""

    config: Config
    now: float
    version: str
    """Of this program."""
    grace_seconds: float | None
    files: FilesSeen
    host: HostFacts
    secrets: SecretsSeen
    upstream: UpstreamSeen | Unknown
    around: BypassProbe | Unknown
    store: StoreSeen | Unknown
    running: RunningSeen | Unknown
