"""A file's identity, and whether a change of it can be seen."""

import os
from pathlib import Path

import pytest

from sidecar.config.reload import identity_of, is_mounted_alone

MOUNTS = """\
22 1 0:20 / / rw,relatime - overlay overlay rw
31 22 8:1 /pods/7/volumes/config/a /etc/sidecar rw,relatime - ext4 /dev/sda1 rw
32 22 8:1 /pods/7/volumes/config/a {file} ro,relatime shared:1 - ext4 /dev/sda1 rw
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "with space" / "sidecar.yaml"
    made.parent.mkdir()
    made.write_text("realm: a\n", encoding="utf-8")
    return made


def test_an_untouched_file_keeps_its_identity(file: Path) -> None:
    assert identity_of(str(file)) == identity_of(str(file))


def test_another_file_of_the_same_size_and_time_is_another(file: Path) -> None:
    before, status = identity_of(str(file)), file.stat()
    new = file.with_name("new")
    new.write_text("realm: b\n", encoding="utf-8")
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(new, file)
    assert identity_of(str(file)) != before


def test_an_overwritten_file_with_its_old_time_counts_as_changed(file: Path) -> None:
    before, status = identity_of(str(file)), file.stat()
    file.write_text("realm: b\n", encoding="utf-8")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert identity_of(str(file)) != before


def test_a_file_that_becomes_readable_counts_as_changed(file: Path) -> None:
    file.chmod(0)
    before = identity_of(str(file))
    file.chmod(0o644)
    assert identity_of(str(file)) != before


def test_a_link_that_leads_elsewhere_is_another(file: Path) -> None:
    """Even to a hard link of the very same file."""
    other, link = file.with_name("other"), file.with_name("link")
    os.link(file, other)
    link.symlink_to(file)
    before = identity_of(str(link))
    link.unlink()
    link.symlink_to(other)
    assert identity_of(str(link)) != before


def test_a_file_that_appears_and_disappears_changes_each_time(file: Path) -> None:
    there = identity_of(str(file))
    text = file.read_text(encoding="utf-8")
    file.unlink()
    gone = identity_of(str(file))
    assert gone != there
    assert identity_of(str(file)) == gone
    file.write_text(text, encoding="utf-8")
    assert identity_of(str(file)) != gone


@pytest.mark.parametrize("lies_in_mounts", [True, False])
def test_a_file_mounted_by_itself_is_known_by_the_mounts(file: Path, tmp_path: Path, lies_in_mounts: bool) -> None:
    mounts, mounted = tmp_path / "mountinfo", file if lies_in_mounts else file.parent
    mounts.write_text(MOUNTS.format(file=str(mounted).replace(" ", "\\040")), encoding="utf-8")
    assert is_mounted_alone(str(file), mounts=str(mounts)) is lies_in_mounts


def test_unreadable_mounts_give_no_finding(file: Path, tmp_path: Path) -> None:
    assert not is_mounted_alone(str(file), mounts=str(tmp_path / "none"))
    assert not is_mounted_alone(str(file))
