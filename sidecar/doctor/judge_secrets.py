"""Judgements of secrets: the admin token, peppers, and the files that hold keys of certificates."""

from typing import Final

from sidecar.config.build.admin import VARIABLE
from sidecar.core.wording import counted
from sidecar.doctor.facts import FileSeen, Seen, StoreSeen, Unseen
from sidecar.doctor.report import Finding, ok, problem, unchecked, warning

_GUESSED_BITS: Final = 70.0
_WEAK_BITS: Final = 100.0


def admin_token(seen: Seen) -> Finding | None:
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


def pepper(seen: Seen) -> Finding:
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


def previous_pepper(seen: Seen) -> Finding | None:
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


def key_files(seen: Seen) -> Finding | None:
    """Keys of certificates."""
    files = [file for file in seen.files.tls_keys if isinstance(file, FileSeen)]
    if len(files) < len(seen.files.tls_keys):
        return unchecked("; ".join(file.reason for file in seen.files.tls_keys if isinstance(file, Unseen)))
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


def _missing(seen: Seen) -> str:
    if not isinstance(seen.store, StoreSeen):
        return ""
    strange = {name: n for name, n in seen.store.look.algorithms.items() if name not in seen.secrets.algorithms}
    return "; ".join(
        f"{counted(n, 'key')} hashed with {name}, for which no pepper is set" for name, n in strange.items()
    )
