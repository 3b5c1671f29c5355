"""The facts about an installation. Of a secret, they hold only its estimated strength, never its text."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from sidecar.config.build.config import Config
from sidecar.config.fields import Address
from sidecar.keys.ports import AuditState
from sidecar.store.sqlite.inspect import StoreReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """A fact that could not be found out, and the reason."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """A file or folder: its permission bits (with the sticky and set-id bits) and its owner."""

    path: str
    mode: int
    uid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """The validity of the first certificate in a PEM file, in Unix seconds."""

    path: str
    begins_at: float
    ends_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFacts:
    """The file system that holds the store: its type, and its free and total bytes."""

    kind: str
    free: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesFacts:
    """The files of the configuration and of the store, and those that hold TLS keys and certificates."""

    config: FileFacts | Unknown
    config_alone: bool
    """Whether the file is a mount of its own (`subPath`)."""
    literal_secrets: int
    """Number of secrets that the file holds in plain text."""
    store: tuple[FileFacts, ...]
    """The database, and its -wal and -shm files if they exist."""
    store_folder: FileFacts | Unknown
    disk: DiskFacts | Unknown
    tls_keys: tuple[FileFacts | Unknown, ...]
    certificates: tuple[CertificateFacts | Unknown, ...]
    listener_tls: str
    """Why the listener's TLS files are unusable; empty if they are usable, or if there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """A process: its id, its user, and how many files it may open (None: no limit)."""

    pid: int
    uid: int
    open_files: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """This host. `sidecar` is the process that listens on the data address, `own` is the doctor's process."""

    in_kubernetes: bool
    addresses: tuple[str, ...]
    """Addresses of this host, without loopback and link-local ones."""
    uvloop: bool
    own: ProcessFacts
    sidecar: ProcessFacts | Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsFacts:
    """The secrets of the environment by their strength: an upper bound in bits. None: not set."""

    admin_token_bits: float | None
    pepper_bits: float | None
    pepper_problem: str
    """Why the peppers are unusable; empty if they are usable."""
    previous_algorithm: str | None
    """Algorithm of the keys that are hashed with the previous pepper."""
    algorithms: frozenset[str]
    """Algorithms that this environment can verify."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamFacts:
    """A connection to the upstream that succeeded."""

    seconds: float
    certificate_ends_at: float | None
    clock_ahead: float | Unknown
    """Seconds by which its Date is ahead of this host's clock."""


Location = Literal["unix", "loopback", "this host", "elsewhere"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BypassProbe:
    """Where the upstream is, and on which other addresses of this host its port accepts connections."""

    location: Location
    tried: tuple[str, ...] = ()
    reachable: tuple[Address, ...] = ()
    socket: FileFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Median and maximum duration of an operation, in seconds."""

    operation: str
    median: float
    slowest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """The key store: its report, latencies and audit."""

    report: StoreReport
    latencies: tuple[Latency, ...] | Unknown
    audit: AuditState | Unknown
    trouble: str = ""
    """Why the store is unusable; empty if it is usable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFacts:
    """The database where keys are looked up, and in how many seconds it answers."""

    is_standby: bool
    in_step: bool
    """Whether it showed the primary's newest change within a second."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFileFacts:
    """The file that keys are read from. problems: what is wrong with it, one line each, with its name."""

    path: str
    records: int = 0
    problems: tuple[str, ...] = ()
    alone: bool = False
    """Whether it is a mount of its own (`subPath`)."""
    keeps_usage: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningFacts:
    """What the ops listener of the running sidecar reports."""

    seconds: float
    ready: bool
    lines: tuple[str, ...]
    """Lines of `/readyz?verbose`."""
    metrics: Mapping[str, float]
    """Value of each sample, by its name and labels as /metrics prints them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedUpstream:
    """One of `upstreams`."""

    upstream: UpstreamFacts | Unknown
    bypass: BypassProbe | Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All facts. `now` is in Unix seconds; `grace_seconds` is the platform's wait after SIGTERM, if known."""

    config: Config
    now: float
    version: str
    """Version of this program."""
    grace_seconds: float | None
    files: FilesFacts
    host: HostFacts
    secrets: SecretsFacts
    upstream: UpstreamFacts | Unknown
    bypass: BypassProbe | Unknown
    store: StoreFacts | Unknown
    running: RunningFacts | Unknown
    upstreams: Mapping[str, NamedUpstream] = field(default_factory=dict)
    key_file: KeyFileFacts | Unknown | None = None
    """None if keys are not in a file."""
    replica: ReplicaFacts | Unknown | None = None
    """None if `store.replica` is not set."""
    upstream_option: str = "upstream"
    """Where `upstream` and `bypass` are in the configuration."""

    def of_upstream(self, name: str) -> "Facts":
        """These facts, with one of `upstreams` instead of the default one."""
        config = replace(self.config, upstream=self.config.upstreams[name])
        found = self.upstreams[name]
        option = f"upstreams.{name}"
        return replace(self, config=config, upstream=found.upstream, bypass=found.bypass, upstream_option=option)
