from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from trainers.data.cache.network_fs import network_file_system

MOUNTS = """\
/dev/sda1 / ext4 rw,relatime 0 0
server:/export/home /home nfs4 rw,vers=4.2 0 0
/dev/nvme0n1 /home/scratch xfs rw 0 0
auto.data /data autofs rw 0 0
10.0.0.1@tcp:/fs /data lustre rw 0 0
//server/share /mnt/my\\040share cifs rw 0 0
me@server:/ /mnt/ssh fuse.sshfs rw 0 0
bucket /mnt/bucket fuse.s3fs rw 0 0
bucket /mnt/google fuse.gcsfuse rw 0 0
/dev/sdb1 /mnt/stick fuse.ntfs-3g rw 0 0
overlay /home/overlay overlay rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", None),
        ("/var/cache", None),
        ("/home", "nfs4"),
        ("/home/ann/.cache/lipsum-tune/arrow", "nfs4"),
        ("/homes/ann", None),
        ("/home/scratch/ann", None),
        ("/home/overlay/ann", None),
        ("/data/ann", "lustre"),
        ("/mnt/my share/ann", "cifs"),
        ("/mnt/ssh", "fuse.sshfs"),
        ("/mnt/bucket/x", "fuse.s3fs"),
        ("/mnt/google/x", "fuse.gcsfuse"),
        ("/mnt/stick/x", None),
    ],
)
def test_the_innermost_and_last_mount_around_a_folder_says_what_it_lies_on(
    folder: str, kind: str | None
) -> None:
    assert network_file_system(PurePosixPath(folder), MOUNTS) == kind


def test_lines_that_are_no_mounts_are_passed_over() -> None:
    assert network_file_system(PurePosixPath("/x"), "") is None
    assert network_file_system(PurePosixPath("/x"), "\nhalf a\n") is None
