"""Whether a file is another than it was, and whether that can be seen at all. Both block: they ask the disk."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_MOUNTS = "/proc/self/mountinfo"
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIdentity:
    """Differs when the file was written, replaced, or led to by another link. A file that is not there has one, too."""

    real_path: str
    """Past every symbolic link: Kubernetes changes a ConfigMap by leading `..data` to another folder."""
    device: int = 0
    inode: int = 0
    changed_ns: int = 0
    """Of the inode, which no one can set back: bytes, mode and owner all count."""
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


def is_mounted_alone(path: str, *, mounts: str = _MOUNTS) -> bool:
    """Whether the file is a mount of its own, as a `subPath` of Kubernetes is: replacing it is then never seen.

    mounts: a file as proc(5) describes `/proc/self/mountinfo`; False where there is none.
    """
    try:
        lines = Path(mounts).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    real_path = os.path.realpath(path)
    points = (line.split(" ")[4] for line in lines if line.count(" ") > 4)
    return any(_ESCAPED.sub(lambda found: chr(int(found[1], 8)), point) == real_path for point in points)
