"""Real disks that are soon full: file systems in memory, mounted for a test. Only root may."""

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
    script = 'cat /dev/zero >> "$0"'
    subprocess.run(["sh", "-c", script, str(disk / BALLAST)], stderr=subprocess.DEVNULL)


def make_room(disk):
    """Undo `fill`."""
    (disk / BALLAST).unlink()
