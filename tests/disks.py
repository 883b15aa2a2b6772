"""Real disks that are soon full: file systems in memory, mounted for a test. Only root may."""

import errno
import subprocess
from contextlib import contextmanager

BALLAST = "ballast"


@contextmanager
def small_disk(folder, kilobytes):
    """A disk of that size, mounted at a new folder."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk):
    """Leave not a byte of room."""
    with (disk / BALLAST).open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def make_room(disk):
    """Undo `fill`."""
    (disk / BALLAST).unlink()
