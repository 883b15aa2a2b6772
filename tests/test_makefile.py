"""The environment that `make` installs into."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# It notes its arguments, and writes into an environment that it makes another one of its kind.
PYTHON = """#!/bin/sh
echo "$@" >> "$LOG"
case "$1$2" in
-c*) exec {python} -c "import sys; sys.version_info = {version}; $2" ;;
-mvenv) rm -r "$4"; mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && cp "$0" "$4/bin/pip" ;;
esac
"""


def made(folder, version):
    """Install one extra with a Python of this version; what it was called with."""
    python, log = folder / "python", folder / "log"
    python.write_text(PYTHON.format(python=sys.executable, version=version))
    python.chmod(0o755)
    log.write_text("")
    command = ["make", f"VENV={folder}/venv", f"PYTHON={python}", f"{folder}/venv/.test"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"LOG": str(log)}, capture_output=True, text=True
    )
    return done, log.read_text()


@pytest.mark.parametrize("half_made", [False, True])
def test_an_environment_without_pip_is_made_anew(half_made, tmp_path):
    if half_made:  # by a Python without ensurepip, or one that was killed
        (tmp_path / "venv" / "bin").mkdir(parents=True)
        (tmp_path / "venv" / "bin" / "python").touch(0o755)
    done, calls = made(tmp_path, (3, 11))
    assert done.returncode == 0, done.stderr
    assert f"-m venv --clear {tmp_path}/venv" in calls
    assert "-m pip install --quiet --editable .[test]" in calls
    (tmp_path / "venv" / ".test").unlink()
    assert "venv" not in made(tmp_path, (3, 10))[1].partition("-m pip")[0]  # it is complete


def test_an_old_python_is_refused_in_one_line(tmp_path):
    done, calls = made(tmp_path, (3, 10))
    assert done.returncode != 0
    assert "is Python 3.10, and 3.11 is needed" in done.stderr
    assert "-m venv" not in calls
