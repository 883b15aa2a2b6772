"""What `make` installs: versions of constraints.txt, from where pip's settings say."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PINS = [Requirement(line) for line in LINES]
LEFT_OUT = re.compile(r"(torch|torchvision|triton|cuda-.*|nvidia-.*|lipsum-tune)")


def test_constraints_are_versions_without_places():
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9a-z.]+( ; [^/@]+)?", line) for line in LINES)
    assert not [pin.name for pin in PINS if LEFT_OUT.fullmatch(pin.name)]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_constraints_have_one_allowed_version_of_each_package(python, platform):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    machine = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": platform,
    }
    there = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(machine)]
    for wanted in (Requirement(text) for texts in lists for text in texts):
        name = re.sub("[-_.]+", "-", wanted.name).lower()
        if not LEFT_OUT.fullmatch(name):
            (found,) = [pin for pin in there if pin.name == name]
            assert wanted.specifier.contains(str(found.specifier).removeprefix("=="))


def test_the_citation_has_the_version_of_the_package():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == version
    assert f"## [{version}] - {cited['date-released']}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_windows_is_told_of_wsl():
    code = "import sys; sys.platform = 'win32'; import cluster.cli"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "WSL" in done.stderr


def test_uv_gets_the_settings_of_pip(tmp_path):
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://of.file/simple\nconstraint = own.txt\n"
        "find-links =\n    /first\n    /second\n"
    )
    makefile = f"include {ROOT}/Makefile\nsettings:\n\t@$(call pip-settings,{sys.prefix}/bin)\n"
    (tmp_path / "Makefile").write_text(makefile)
    names = {"PIP_CONFIG_FILE": "pip.conf", "PIP_INDEX_URL": "https://of.variable/simple"}
    done = subprocess.run(
        ["make", "settings"],
        cwd=tmp_path,
        env=os.environ | names | {"PIP_EXTRA_INDEX_URL": "https://a/1 https://b/2"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert {"--constraint own.txt", "--find-links /first", "--find-links /second"} <= {*lines}
    assert {"--extra-index-url https://a/1", "--extra-index-url https://b/2"} <= {*lines}
    of_index = [line for line in lines if line.startswith("--index-url")]
    assert of_index == ["--index-url https://of.variable/simple"]
