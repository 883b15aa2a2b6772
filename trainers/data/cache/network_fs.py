"""Tells disks of this machine from network file systems."""

from __future__ import annotations

import re
from pathlib import PurePath

_NETWORK = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"),
    *("gpfs", "beegfs", "panfs", "wekafs", "orangefs"),
}
_IN_USER_SPACE = {
    *("sshfs", "s3fs", "gcsfuse", "goofys", "geesefs", "mount-s3", "rclone", "blobfuse"),
    *("blobfuse2", "juicefs", "ceph", "ceph-fuse", "glusterfs", "moosefs", "seaweedfs"),
}


def network_file_system(folder: PurePath, mounts: str) -> str | None:
    """Type of the network file system that a folder is on; None for other file systems.

    Args:
        folder: absolute, with its links followed; it need not exist.
        mounts: the content of `/proc/mounts`.
    """
    around = {str(folder), *(str(parent) for parent in folder.parents)}
    depth, found = -1, ""
    for line in mounts.splitlines():
        _, point, kind = (*line.split(" ", 3), "", "", "")[:3]
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)
        if point in around and len(point) >= depth:  # the last mount on a folder hides the others
            depth, found = len(point), kind
    program = re.split(r"[.#]", found.removeprefix("fuse."))[0]
    is_network = found in _NETWORK or (found.startswith("fuse.") and program in _IN_USER_SPACE)
    return found if is_network else None
