"""Checks of the secrets and of the key store."""

from typing import Final

from sidecar.config.build.policy import VARIABLE
from sidecar.config.store_url import is_sqlite, shown_store
from sidecar.core.units import counted
from sidecar.doctor.facts import DiskFacts, Facts, FileFacts, Latency, ProcessFacts, ReplicaFacts, StoreFacts, Unknown
from sidecar.doctor.findings import Finding, ok, problem, span, unchecked, warning

# Secrets.

_GUESSABLE_BITS: Final = 70.0
_WEAK_BITS: Final = 100.0


def admin_token(facts: Facts) -> Finding | None:
    """Whether an admin token is in the environment. The configuration file contains only hashes."""
    if facts.config.admin is None:
        return None
    bits = facts.secrets.admin_token_bits
    if bits is None:
        return ok(f"{counted(len(facts.config.admin.tokens), 'token')}, stored as hashes")
    do = "Create tokens with `sidecar admin token`, add their entries to admin.tokens, and unset the variable."
    if bits < _GUESSABLE_BITS:
        return problem(f"{VARIABLE} is easy to guess", why="Whoever guesses it can issue and revoke any key.", do=do)
    weak = ", and it is rather short" if bits < _WEAK_BITS else ""
    return warning(
        f"{VARIABLE} is in the environment in plain text{weak}",
        why="It has all rights, and anyone who can inspect the process or the manifest can read it.",
        do=do,
    )


def pepper(facts: Facts) -> Finding:
    """Whether the pepper is set, usable and hard to guess, and whether it can verify the stored keys."""
    secrets = facts.secrets
    if secrets.pepper_problem:
        return problem(
            secrets.pepper_problem, why="The sidecar refuses to start.", do="Set the variable as the message says."
        )
    missing = _missing(facts)
    if missing:
        return problem(
            missing,
            why="The sidecar refuses to start, because it could not verify these keys.",
            do="Set SIDECAR_PEPPER or SIDECAR_PEPPER_PREVIOUS to the pepper that they were hashed with, or set it in "
            "keys.imported if they were imported. Doctor sees only its own environment: run it with the sidecar's.",
        )
    if secrets.pepper_bits is None:
        return warning(
            "SIDECAR_PEPPER is not set",
            why="Keys are stored as plain SHA-256. Keys issued here cannot be guessed; imported ones may be guessed "
            "by anyone who has a copy of the store.",
            do="Set it from a secret (`openssl rand -base64 32`) that is kept outside the store. Doctor sees only its "
            "own environment: run it with the sidecar's.",
        )
    if secrets.pepper_bits < _WEAK_BITS:
        return warning(
            "SIDECAR_PEPPER is easy to guess",
            why="A pepper that can be guessed protects nothing.",
            do="Set a new one (`openssl rand -base64 32`), and move this one to SIDECAR_PEPPER_PREVIOUS.",
        )
    return ok("set, and long enough")


def previous_pepper(facts: Facts) -> Finding | None:
    """Whether any key still needs the previous pepper."""
    algorithm = facts.secrets.previous_algorithm
    if algorithm is None:
        return None
    if not isinstance(facts.store, StoreFacts):
        return unchecked("the store cannot be read to see whether keys still need SIDECAR_PEPPER_PREVIOUS")
    remaining = facts.store.report.algorithms.get(algorithm, 0)
    if remaining:
        return ok(f"{counted(remaining, 'key')} still {'needs' if remaining == 1 else 'need'} SIDECAR_PEPPER_PREVIOUS")
    return warning(
        "SIDECAR_PEPPER_PREVIOUS is set, but no key needs it anymore",
        why="An unused secret can only leak.",
        do="Unset it.",
    )


def key_files(facts: Facts) -> Finding | None:
    """Whether other users can read the private keys of certificates."""
    files = [file for file in facts.files.tls_keys if isinstance(file, FileFacts)]
    if len(files) < len(facts.files.tls_keys):
        return unchecked("; ".join(file.reason for file in facts.files.tls_keys if isinstance(file, Unknown)))
    if not files:
        return None
    readable = [file for file in files if file.mode & 0o007]
    if not readable:
        return ok(", ".join(f"{file.path} has mode {file.mode:04o}" for file in files))
    result = warning if facts.host.in_kubernetes else problem
    return result(
        ", ".join(f"{file.path} has mode {file.mode:04o}" for file in readable),
        why="Every user of this host can read the private key and impersonate this server.",
        do="chmod 0600, owned by the sidecar's user (Kubernetes: defaultMode: 0440 of the secret's volume).",
    )


def _missing(facts: Facts) -> str:
    if not isinstance(facts.store, StoreFacts):
        return ""
    unverifiable = {
        name: n for name, n in facts.store.report.algorithms.items() if name not in facts.secrets.algorithms
    }
    return "; ".join(
        f"{counted(n, 'key')} hashed with {name}, for which no pepper is set" for name, n in unverifiable.items()
    )


# The key store.

_SHARED: Final = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "gfs2", "afs", "ocfs2", "beegfs", "gpfs"}
_DOUBTFUL: Final = {"9p", "virtiofs", "vboxsf", "fuse"}
_EPHEMERAL: Final = {
    "tmpfs": "memory: a restart loses every key",
    "overlay": "the container's own layer: it is lost with the container",
}
_MIN_FREE: Final = 256 * 1024 * 1024
_SLOW: Final = {"change check": 0.002, "key lookup": 0.02, "write lock": 0.1}
"""Operation to the median, in seconds, above which it counts as slow."""
_SLOW_REPLICA: Final = 0.25
"""Seconds after which a sidecar asks the primary."""
_CLOCK_WARNING: Final = 5.0
_CLOCK_PROBLEM: Final = 300.0


def key_file(facts: Facts) -> Finding | None:
    """Whether the file that keys are read from is valid, and whether its changes are seen."""
    found = facts.key_file
    if found is None or isinstance(found, Unknown):
        return None if found is None else unchecked(found.reason)
    if found.problems:
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        return problem(
            found.problems[0] + more,
            why="A running sidecar keeps the keys that it has, and one that starts does not start.",
            do=f"Mend {found.path}: `sidecar keys list` prints every problem.",
        )
    if found.alone:
        return warning(
            f"{found.path} is mounted as a single file (subPath)",
            why="Kubernetes never updates such a file, so a revoked key keeps working.",
            do="Mount the ConfigMap or Secret as a folder, without subPath.",
        )
    kept = "" if found.keeps_usage else "; their use and changes are not stored (store.usage)"
    return ok(f"{counted(found.records, 'record')} in {found.path}{kept}")


def schema(facts: Facts) -> Finding | None:
    """Whether this program can use the store."""
    if facts.key_file is not None:
        return None
    if isinstance(facts.store, Unknown):
        return _unopened(facts, facts.store)
    report = facts.store.report
    if report.version == 0:
        return problem(
            "the store is empty",
            why="The sidecar does not start with it.",
            do="Run `sidecar store make`, or restore a backup (`sidecar store restore FILE`).",
        )
    if report.version > report.newest_version:
        return problem(
            f"schema version {report.version}; this program supports {report.newest_version}",
            why="A newer sidecar wrote it, and this version does not start with it.",
            do="Use the newer sidecar.",
        )
    if report.version < report.newest_version:
        return warning(
            f"schema version {report.version}; this program's is {report.newest_version}",
            why="The next start of this version migrates it, and older sidecars cannot use it afterwards.",
            do="Make a backup (`sidecar store backup FILE`), and upgrade every sidecar on this store at the same time.",
        )
    return ok(f"schema version {report.version}, {counted(report.active, 'active key')}")


def _unopened(facts: Facts, store: Unknown) -> Finding:
    if not is_sqlite(facts.config.store):
        return problem(
            store.reason,
            why="Without its store the sidecar does not start. If it is running, its requests get 503.",
            do="Fix the cause. For a new installation, run `sidecar store make`.",
        )
    user, process = facts.host.own.uid, facts.host.sidecar
    owner = _other_owner(facts, user)
    if owner is not None:
        saw = f"the store belongs to user {owner}, and doctor runs as user {user}: {store.reason}"
        if isinstance(process, ProcessFacts) and process.uid == owner:
            return unchecked(saw, do=f"Run doctor as user {owner}, as the sidecar runs.")
        return problem(
            saw,
            why=f"As user {user}, the sidecar does not start.",
            do=f"Run the sidecar, and doctor, as user {owner}; or chown the store and its folder to user {user}.",
        )
    return problem(
        store.reason,
        why="Without its store the sidecar does not start. If it is running, keys that are not cached get 503.",
        do="Fix the cause, or restore a backup (`sidecar store restore FILE`). New installation: `sidecar store make`.",
    )


def _other_owner(facts: Facts, user: int) -> int | None:
    """The user, if not `user`, who owns the store, judging by the files or their folder."""
    files, folder = facts.files.store, facts.files.store_folder
    if files:
        return files[0].uid if user != 0 and any(file.uid != user for file in files) else None
    closed = isinstance(folder, FileFacts) and folder.uid != user and not folder.mode & 0o001
    return folder.uid if user != 0 and isinstance(folder, FileFacts) and closed else None


def modes(facts: Facts) -> Finding | None:
    """Whether others can read the hashes, names and tenants in the store, or write keys into it."""
    files = facts.files.store
    if not files:
        return None
    listed = ", ".join(f"{file.path.rpartition('/')[2]} {file.mode:04o}" for file in files)
    if any(file.mode & 0o007 for file in files):
        return problem(
            listed,
            why="Every user of this host can read hashes and names of keys, or even add keys of their own.",
            do=f"chmod 0600 {' '.join(file.path for file in files if file.mode & 0o007)}",
        )
    if any(file.mode & 0o070 for file in files):
        return warning(
            listed,
            why="The group can read hashes and names of keys, or even add keys of its own.",
            do=f"chmod 0600 {' '.join(file.path for file in files if file.mode & 0o070)}, unless this is intended.",
        )
    return ok(listed)


def folder(facts: Facts) -> Finding | None:
    """Whether others can replace the store by one of their own."""
    found = facts.files.store_folder
    if isinstance(found, Unknown):
        return unchecked(found.reason) if facts.files.store else None
    saw = f"{found.path} has mode {found.mode:04o}"
    if not found.mode & 0o002:
        return ok(saw)
    if facts.host.in_kubernetes:
        return ok(f"{saw}, as volumes in Kubernetes do; only this pod can see it")
    result = warning if found.mode & 0o1000 else problem
    return result(
        f"{saw}: everyone can write to it",
        why="Other users can add files beside the store, or replace it by one of their own.",
        do=f"chmod 0700 {found.path}, or move the store to a folder of its own.",
    )


def owner(facts: Facts) -> Finding | None:
    """Whether the store's files belong to the sidecar's user."""
    files = facts.files.store
    if not files:
        return None
    uids = {file.uid for file in files}
    process = facts.host.sidecar
    listed = ", ".join(f"{file.path.rpartition('/')[2]} belongs to user {file.uid}" for file in files)
    if len(uids) > 1:
        return problem(
            listed,
            why="SQLite writes all of these files. If the sidecar's user may not, its writes fail.",
            do=f"chown them to user {files[0].uid}, and run store commands as the sidecar's user.",
        )
    if isinstance(process, Unknown):
        return ok(f"its files belong to user {files[0].uid}; run the sidecar and store commands as this user")
    if process.uid not in (0, files[0].uid):
        return warning(
            f"the store belongs to user {files[0].uid}, and the sidecar runs as user {process.uid}",
            why="Unless the group may write, the sidecar can neither record usage nor issue keys.",
            do=f"chown -R {process.uid} {files[0].path.rpartition('/')[0]}",
        )
    return ok(f"its files belong to user {files[0].uid}, and the sidecar runs as user {process.uid}")


def disk(facts: Facts) -> Finding | None:
    """Whether the file system suits SQLite and has free space."""
    found = facts.files.disk
    if isinstance(found, Unknown):
        return unchecked(found.reason) if facts.files.store else None
    free = f"{found.free / 2**30:.1f} GiB free"
    kind = found.kind or "an unknown file system"
    if kind in _SHARED:
        return problem(
            f"{kind}, a network file system",
            why="SQLite's write-ahead log needs shared memory between all processes: over a network it loses writes or "
            "corrupts the file.",
            do="Put the store on a local disk (Kubernetes: a ReadWriteOnce volume of a block device).",
        )
    if kind.partition(".")[0] in _DOUBTFUL:
        return warning(
            f"{kind}, {free}",
            why="Locks and shared memory may not work there as SQLite's write-ahead log requires.",
            do="Put the store on a local disk, unless you are sure that only one host uses it.",
        )
    return _space(found, kind, free)


def _space(found: DiskFacts, kind: str, free: str) -> Finding:
    if found.free < _MIN_FREE:
        return warning(
            f"{kind}, {found.free / 2**20:.0f} MiB free",
            why="On a full disk, keys cannot be issued or revoked, and usage is not recorded.",
            do="Free some space, or enlarge the volume.",
        )
    if kind in _EPHEMERAL:
        return warning(
            f"the store is in {_EPHEMERAL[kind]}",
            why="Lost keys cannot be recovered: every client needs a new one.",
            do="Put it on a persistent volume, unless its keys are imported at each start.",
        )
    return ok(f"{kind}, {free}")


def latency(facts: Facts) -> Finding | None:
    """Whether the store is fast enough."""
    if isinstance(facts.store, Unknown):
        return None
    if facts.store.trouble:
        return problem(
            facts.store.trouble,
            why="Keys that are not cached get 503, and no key can be issued or revoked.",
            do="Fix the cause, and run doctor again.",
        )
    found = facts.store.latencies
    if isinstance(found, Unknown):
        return unchecked(found.reason)
    times = "; ".join(f"{one.operation} {span(one.median)}, at most {span(one.slowest)}" for one in found)
    slow = [one.operation for one in found if _is_slow(one)]
    if not slow:
        return ok(times)
    return warning(
        times,
        why=f"Slow: {', '.join(slow)}. Requests with keys that are not cached, and changes to keys, have to wait.",
        do="Look for a slow or busy disk (iostat -x 1), for CPU limits, and for other processes that use the store.",
    )


def _is_slow(one: Latency) -> bool:
    limit = _SLOW[one.operation]
    return one.median > limit or one.slowest > 10 * limit


def replica(facts: Facts) -> Finding | None:
    """Whether keys are looked up at the replica that the configuration names."""
    found, name = facts.replica, shown_store(facts.config.store_replica)
    if found is None:
        return None
    if isinstance(facts.store, Unknown):
        return unchecked(f"{name} cannot be compared with the store, which cannot be read")
    trouble = found.reason if isinstance(found, Unknown) else _trouble(found, name)
    if not trouble:
        return ok(f"{name} is in step with the store")
    return warning(
        trouble,
        why="Keys that are not in memory are looked up at the primary instead, which has to bear that.",
        do="Name a standby by streaming replication in store.replica, and look why it is away or late.",
    )


def _trouble(found: ReplicaFacts, name: str) -> str:
    if not found.is_standby:
        return f"{name} is no standby"
    if not found.in_step:
        return f"{name} lags behind the store by over 1 s, or is no copy of it"
    return f"{name} takes {span(found.seconds)} to answer" if found.seconds > _SLOW_REPLICA else ""


def clock(facts: Facts) -> Finding | None:
    """Whether a time in the store is in the future."""
    if isinstance(facts.store, Unknown):
        return None
    newest = facts.store.report.newest_at
    if not newest:
        return ok("the store contains no times yet")
    ahead = newest / 1_000_000 - facts.now
    if ahead <= _CLOCK_WARNING:
        return ok(
            f"the latest time in the store is {span(ahead)} ago" if ahead <= 0 else "its times agree with the clock"
        )
    result = problem if ahead > _CLOCK_PROBLEM else warning
    return result(
        f"a time in the store is {span(ahead)} ahead of this host's clock",
        why="This clock is behind, or that of another writer was ahead: keys expire at the wrong time, and quotas "
        "reset at the wrong time.",
        do="Synchronise every host that uses the store by NTP (see timedatectl, chronyc tracking).",
    )


def audit(facts: Facts) -> Finding | None:
    """Whether the audit trail is intact."""
    if isinstance(facts.store, Unknown):
        return None
    found = facts.store.audit
    if isinstance(found, Unknown):
        return unchecked(found.reason)
    if found.problem is None:
        return ok(f"{counted(found.rows, 'row')}, none changed or removed")
    return problem(
        found.problem,
        why="Someone changed the store directly, or the file is damaged: the audit cannot be trusted.",
        do="Compare it with a backup (`sidecar audit verify`), and find out who could write the file.",
    )


def keys(facts: Facts) -> Finding | None:
    """Whether keys expire or get replaced."""
    if not isinstance(facts.store, StoreFacts) or not facts.store.report.active:
        return None
    report, max_age = facts.store.report, facts.config.keys.max_age_seconds
    saw = f"{report.without_expiry:,} of {counted(report.active, 'active key')} never {_ends(report.without_expiry)}"
    if max_age is not None and report.too_old:
        return warning(
            f"{counted(report.too_old, 'key')} older than keys.max_age ({span(max_age)}); {saw}",
            why="The older a key is, the more places it has been copied to.",
            do="`sidecar keys due` lists them and what they are used for; `sidecar keys rotate ID` replaces one.",
        )
    if max_age is None and report.without_expiry:
        return warning(
            f"{saw}, and keys.max_age is not set",
            why="Nobody is reminded to replace them, and a forgotten key works forever.",
            do="Set keys.max_age (such as 90d), or issue keys with --expires.",
        )
    return ok(saw)


def _ends(number: int) -> str:
    return "expires" if number == 1 else "expire"
