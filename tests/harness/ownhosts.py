"""`python -m tests.harness.ownhosts HOSTS MODULE …` is `python -m MODULE …` that sees the file HOSTS as /etc/hosts.

By a mount namespace of its own; nobody else sees it. The file may be written to while the process runs.
"""

import os
import subprocess
import sys

from tests.harness.tools import needed

_ENTER = 'mount --bind "$0" /etc/hosts && exec "$@"'


def enter(*command: str) -> list[str]:
    """Arguments that run `command` with a first argument HOSTS as its /etc/hosts."""
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", _ENTER, *command]


def why_impossible(hosts: str) -> str:
    """What the kernel or a container says against it; empty where it is possible."""
    needed("unshare")
    tried = subprocess.run(enter(hosts, "true"), capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else ""


if __name__ == "__main__":
    os.execvp("unshare", enter(sys.argv[1], sys.executable, "-m", *sys.argv[2:]))  # noqa: S606 - no shell is wanted
