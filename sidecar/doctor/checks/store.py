"""Judgements of the key store."""

from typing import Final

from sidecar.config.build.admin import VARIABLE
from sidecar.core.units import counted
from sidecar.doctor.facts import DiskSeen, Facts, FileFacts, Latency, StoreSeen, Unknown
from sidecar.doctor.report import Finding, ok, problem, span, unchecked, warning

# Judgements of secrets: the admin token, peppers, and the files that hold keys of certificates.


_GUESSED_BITS: Final = 70.0
_WEAK_BITS: Final = 100.0


def admin_token(seen: Facts) -> Finding | None:
    """The one in the environment; those in the file are hashes."""
    if seen.config.admin is None:
        return None
    bits = seen.secrets.admin_token_bits
    if bits is None:
        return ok(f"{counted(len(seen.config.admin.tokens), 'token')}, stored as hashes")
    do = "Make tokens with `sidecar admin token`, put their hashes in admin.tokens, and unset the variable."
    if bits < _GUESSED_BITS:
        return problem(f"{VARIABLE} is easy to guess", why="Who guesses it issues and revokes any key.", do=do)
    weak = ", and is rather short" if bits < _WEAK_BITS else ""
    return warning(
        f"{VARIABLE} stands in the environment in the clear{weak}",
        why="It may do everything, and whoever may look at the process or the manifest reads it.",
        do=do,
    )


def pepper(seen: Facts) -> Finding:
    """Whether it is there, usable, and hard to guess; and whether the stored keys can be verified with it."""
    secrets = seen.secrets
    if secrets.pepper_problem:
        return problem(secrets.pepper_problem, why="The sidecar refuses to start.", do="Set the variable as it says.")
    missing = _missing(seen)
    if missing:
        return problem(
            missing,
            why="The sidecar refuses to start: it would refuse these keys.",
            do="Set SIDECAR_PEPPER or SIDECAR_PEPPER_PREVIOUS to the pepper they were made with, or, if they were made "
            "elsewhere, name it in keys.imported. Doctor sees its own environment: run it with the sidecar's.",
        )
    if secrets.pepper_bits is None:
        return warning(
            "SIDECAR_PEPPER is not set",
            why="Keys are stored as plain SHA-256. Keys made here cannot be guessed; imported ones may be, by who has "
            "a copy of the store.",
            do="Set it from a secret (`openssl rand -base64 32`), and keep it outside the store. Doctor sees its own "
            "environment: run it with the sidecar's.",
        )
    if secrets.pepper_bits < _WEAK_BITS:
        return warning(
            "SIDECAR_PEPPER is easy to guess",
            why="A pepper that is guessed protects nothing.",
            do="Set a new one (`openssl rand -base64 32`), and this one as SIDECAR_PEPPER_PREVIOUS.",
        )
    return ok("set, and long enough")


def previous_pepper(seen: Facts) -> Finding | None:
    """It can go once no key needs it."""
    algorithm = seen.secrets.previous_algorithm
    if algorithm is None:
        return None
    if not isinstance(seen.store, StoreSeen):
        return unchecked("the store cannot be asked whether keys still need SIDECAR_PEPPER_PREVIOUS")
    left = seen.store.look.algorithms.get(algorithm, 0)
    if left:
        return ok(f"{counted(left, 'key')} still {'needs' if left == 1 else 'need'} SIDECAR_PEPPER_PREVIOUS")
    return warning(
        "SIDECAR_PEPPER_PREVIOUS is set, but no key needs it any more",
        why="A secret that nobody needs can only leak.",
        do="Unset it.",
    )


def key_files(seen: Facts) -> Finding | None:
    """Keys of certificates."""
    files = [file for file in seen.files.tls_keys if isinstance(file, FileFacts)]
    if len(files) < len(seen.files.tls_keys):
        return unchecked("; ".join(file.reason for file in seen.files.tls_keys if isinstance(file, Unknown)))
    if not files:
        return None
    open_ones = [file for file in files if file.mode & 0o007]
    if not open_ones:
        return ok(", ".join(f"{file.path} has mode {file.mode:04o}" for file in files))
    judge = warning if seen.host.in_kubernetes else problem
    return judge(
        ", ".join(f"{file.path} has mode {file.mode:04o}" for file in open_ones),
        why="Every user of this host can read the private key, and so pose as this server.",
        do="chmod 0600, owned by the sidecar's user (Kubernetes: defaultMode: 0440 of the secret's volume).",
    )


def _missing(seen: Facts) -> str:
    if not isinstance(seen.store, StoreSeen):
        return ""
    strange = {name: n for name, n in seen.store.look.algorithms.items() if name not in seen.secrets.algorithms}
    return "; ".join(
        f"{counted(n, 'key')} hashed with {name}, for which no pepper is set" for name, n in strange.items()
    )


_SHARED: Final = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "gfs2", "afs", "ocfs2", "beegfs", "gpfs"}
_DOUBTFUL: Final = {"9p", "virtiofs", "vboxsf", "fuse"}
_LOST: Final = {"tmpfs": "memory: a restart loses every key", "overlay": "the container's own layer: it goes with it"}
_LEAST_FREE: Final = 256 * 1024 * 1024
_SLOW: Final = {"change seen": 0.002, "key looked up": 0.02, "right to write": 0.1}
"""Seconds of a median past which something is wrong."""
_CLOCK_WARNING: Final = 5.0
_CLOCK_PROBLEM: Final = 300.0


def schema(seen: Facts) -> Finding:
    if isinstance(seen.store, Unknown):
        return _unopened(seen, seen.store)
    look = seen.store.look
    if look.version == 0:
        return problem("it is empty", why="The sidecar does not start on it.", do="`sidecar store make`, or a backup.")
    if look.version > look.newest_version:
        return problem(
            f"schema version {look.version}; this program knows {look.newest_version}",
            why="A newer sidecar made it; this one does not start on it.",
            do="Use the newer sidecar.",
        )
    if look.version < look.newest_version:
        return warning(
            f"schema version {look.version}; this program's is {look.newest_version}",
            why="The next start of this version brings it up to date, and older sidecars cannot use it afterwards.",
            do="Make a backup, and replace every sidecar on this store at once.",
        )
    return ok(f"schema version {look.version}, {counted(look.active, 'active key')}")


def _unopened(seen: Facts, store: Unknown) -> Finding:
    if not seen.config.store.startswith("sqlite:"):
        return unchecked(store.reason)
    user = seen.host.own.uid
    if user != 0 and any(file.uid != user for file in seen.files.store):
        owner = seen.files.store[0].uid
        return unchecked(
            f"it belongs to user {owner}, and doctor runs as {user}: {store.reason}", do=f"Run doctor as user {owner}."
        )
    return problem(
        store.reason,
        why="Without its store the sidecar does not start, and one that runs answers 503 to keys it has not seen.",
        do="Mend what it says, or restore a backup; `sidecar store make` makes the first one.",
    )


def modes(seen: Facts) -> Finding | None:
    """It holds hashes, names and tenants; who writes it makes keys."""
    files = seen.files.store
    if not files:
        return None
    told = ", ".join(f"{file.path.rpartition('/')[2]} {file.mode:04o}" for file in files)
    if any(file.mode & 0o007 for file in files):
        return problem(
            told,
            why="Every user of this host can read hashes and names of keys, or even write keys of their own.",
            do=f"chmod 0600 {' '.join(file.path for file in files if file.mode & 0o007)}",
        )
    if any(file.mode & 0o070 for file in files):
        return warning(
            told,
            why="Its group can read hashes and names of keys, or even write keys of their own.",
            do=f"chmod 0600 {' '.join(file.path for file in files if file.mode & 0o070)}, unless this is meant.",
        )
    return ok(told)


def folder(seen: Facts) -> Finding | None:
    """Who may write the folder can put another store in the place of this one."""
    found = seen.files.store_folder
    if isinstance(found, Unknown):
        return unchecked(found.reason) if seen.files.store else None
    saw = f"{found.path} has mode {found.mode:04o}"
    if not found.mode & 0o002:
        return ok(saw)
    if seen.host.in_kubernetes:
        return ok(f"{saw}, as volumes in Kubernetes have; only this pod sees it")
    judge = warning if found.mode & 0o1000 else problem
    return judge(
        f"{saw}: everybody may write in it",
        why="Others can put files beside the store, or a store of their own in its place.",
        do=f"chmod 0700 {found.path}, or move the store into a folder of its own.",
    )


def owner(seen: Facts) -> Finding | None:
    """Of the store and what lies beside it, against the user of the process."""
    files = seen.files.store
    if not files:
        return None
    uids = {file.uid for file in files}
    process = seen.host.sidecar
    told = ", ".join(f"{file.path.rpartition('/')[2]} belongs to user {file.uid}" for file in files)
    if len(uids) > 1:
        return problem(
            told,
            why="SQLite writes all of them; the sidecar's user may not, and its writes fail.",
            do=f"chown them to user {files[0].uid}, and run commands on the store as the sidecar's user.",
        )
    if isinstance(process, Unknown):
        return ok(f"all of it belongs to user {files[0].uid}; run the sidecar, and commands on the store, as this user")
    if process.uid not in (0, files[0].uid):
        return warning(
            f"the store belongs to user {files[0].uid}, and the sidecar runs as {process.uid}",
            why="Unless its group may write, it cannot count, nor issue keys.",
            do=f"chown -R {process.uid} {files[0].path.rpartition('/')[0]}",
        )
    return ok(f"all of it belongs to user {files[0].uid}, and the sidecar runs as {process.uid}")


def disk(seen: Facts) -> Finding | None:
    found = seen.files.disk
    if isinstance(found, Unknown):
        return unchecked(found.reason) if seen.files.store else None
    free = f"{found.free / 2**30:.1f} GiB free"
    kind = found.kind or "an unknown file system"
    if kind in _SHARED:
        return problem(
            f"{kind}, a network file system",
            why="SQLite's write-ahead log needs memory that all its users share: over a network it loses writes or "
            "damages the file.",
            do="Put the store on a local disk (Kubernetes: a ReadWriteOnce volume of a block device).",
        )
    if kind.partition(".")[0] in _DOUBTFUL:
        return warning(
            f"{kind}, {free}",
            why="Locks and shared memory may not work there as SQLite's write-ahead log needs them.",
            do="Put the store on a local disk, unless you know that only one host uses it.",
        )
    return _lasting(found, kind, free)


def _lasting(found: DiskSeen, kind: str, free: str) -> Finding:
    if found.free < _LEAST_FREE:
        return warning(
            f"{kind}, {found.free / 2**20:.0f} MiB free",
            why="On a full disk, keys cannot be issued or revoked, and use is not counted.",
            do="Free some space, or give the volume more.",
        )
    if kind in _LOST:
        return warning(
            f"the store is in {_LOST[kind]}",
            why="Keys that are lost cannot be made again: clients need new ones.",
            do="Put it on a volume that lasts, unless it is filled from elsewhere at each start.",
        )
    return ok(f"{kind}, {free}")


def latency(seen: Facts) -> Finding | None:
    if isinstance(seen.store, Unknown):
        return None
    if seen.store.trouble:
        return problem(
            seen.store.trouble,
            why="Keys that are not in memory are answered with 503, and none can be issued or revoked.",
            do="Mend what it says, and run doctor again.",
        )
    found = seen.store.latencies
    if isinstance(found, Unknown):
        return unchecked(found.reason)
    told = "; ".join(f"{one.operation}: {span(one.median)}, at most {span(one.slowest)}" for one in found)
    slow = [one.operation for one in found if _is_slow(one)]
    if not slow:
        return ok(told)
    return warning(
        told,
        why=f"Slow: {', '.join(slow)}. Requests with keys that are not in memory, and changes of keys, wait for it.",
        do="Look for a slow or busy disk (iostat -x 1), for limits of processor time, and for others on the store.",
    )


def _is_slow(one: Latency) -> bool:
    limit = _SLOW[one.operation]
    return one.median > limit or one.slowest > 10 * limit


def clock(seen: Facts) -> Finding | None:
    """Nothing in the store can have happened later than now."""
    if isinstance(seen.store, Unknown):
        return None
    newest = seen.store.look.newest_at
    if not newest:
        return ok("nothing in it has a time yet")
    ahead = newest / 1_000_000 - seen.now
    if ahead <= _CLOCK_WARNING:
        return ok(f"the latest time in it is {span(ahead)} ago" if ahead <= 0 else "its times agree with the clock")
    judge = problem if ahead > _CLOCK_PROBLEM else warning
    return judge(
        f"a time in it lies {span(ahead)} ahead of this host's clock",
        why="This clock is behind, or another that wrote was ahead: keys expire at the wrong time, and quotas count "
        "in the wrong hour.",
        do="Let every host that uses the store take the time from NTP (timedatectl, chronyc tracking).",
    )


def audit(seen: Facts) -> Finding | None:
    if isinstance(seen.store, Unknown):
        return None
    found = seen.store.audit
    if isinstance(found, Unknown):
        return unchecked(found.reason)
    if found.problem is None:
        return ok(f"{counted(found.rows, 'row')}, none changed or removed")
    return problem(
        found.problem,
        why="Somebody wrote into the store past the sidecar, or the file is damaged: the audit cannot be believed.",
        do="Compare with a backup (`sidecar audit verify`), and find out who could write the file.",
    )


def keys(seen: Facts) -> Finding | None:
    """How long keys live."""
    if not isinstance(seen.store, StoreSeen) or not seen.store.look.active:
        return None
    look, max_age = seen.store.look, seen.config.keys.max_age_seconds
    saw = f"{look.without_expiry:,} of {counted(look.active, 'active key')} never {_ends(look.without_expiry)}"
    if max_age is not None and look.too_old:
        return warning(
            f"{counted(look.too_old, 'key')} older than keys.max_age ({span(max_age)}); {saw}",
            why="The older a key, the more places it has been copied to.",
            do="`sidecar keys due` lists them and what they are used for; `sidecar keys rotate ID` replaces one.",
        )
    if max_age is None and look.without_expiry:
        return warning(
            f"{saw}, and keys.max_age is not set",
            why="Nobody is reminded to replace them, and a forgotten key works for ever.",
            do="Set keys.max_age (such as 90d), or issue keys with --expires.",
        )
    return ok(saw)


def _ends(number: int) -> str:
    return "expires" if number == 1 else "expire"
