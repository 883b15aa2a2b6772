"""What is made of versions and GPUs, from accounts of nodes."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.doctor.node_facts import smi_gpus
from cluster.doctor.software import Here, gpus, software
from tests.cluster.doctor.accounts import H100, VERSIONS, facts, gpu, smi_gpu, torch

HERE = Here("3.11.7", VERSIONS, "0123456789ab")


def test_equal_software_is_one_row_that_names_it() -> None:
    (finding,) = software(HERE, "a", facts())
    assert finding.status == "ok"
    assert finding.nodes == ("a",)
    assert "python 3.11.7" in finding.found
    assert "torch 2.13.0+cu130" in finding.found


@pytest.mark.parametrize(
    ("changes", "status", "said", "remedy"),
    [
        ({"python": "3.12.1"}, "fault", "python 3.12.1 there", "python 3.11"),
        ({"python": "3.11.9"}, "warning", "python 3.11.9 there", "python 3.11"),
        ({"versions": VERSIONS | {"ray": "2.59.0"}}, "fault", "ray 2.59.0", "ray==2.60.0"),
        ({"versions": VERSIONS | {"torch": "2.12.0"}}, "fault", "torch 2.12.0", "torch==2.13.0"),
        ({"versions": VERSIONS | {"numpy": "2.3.0"}}, "warning", "numpy 2.3.0", "numpy==2.4.6"),
        ({"versions": VERSIONS | {"numpy": None}}, "fault", "not installed", "numpy==2.4.6"),
        ({"code": "ffff"}, "fault", "another source code", "same commit"),
    ],
)
def test_a_difference_is_a_row_with_what_to_install(
    changes: dict[str, Any], status: str, said: str, remedy: str
) -> None:
    (finding,) = software(HERE, "a", facts(**changes))
    assert finding.status == status
    assert said in finding.found
    assert remedy in finding.remedy


def test_another_build_of_the_same_torch_is_no_difference() -> None:
    on_cpu = facts(versions=VERSIONS | {"torch": "2.13.0+cpu"})
    assert [finding.status for finding in software(HERE, "a", on_cpu)] == ["ok"]


def test_torch_that_cannot_be_imported_is_a_fault() -> None:
    broken = {"error": "OSError: libcudart.so.13: no such file", "cuda": "", "nccl": "", "gpus": []}
    findings = list(software(HERE, "a", facts(torch=broken)))
    assert [(f.check, f.status) for f in findings if f.status == "fault"] == [("PyTorch", "fault")]
    assert not list(gpus("a", facts(torch=broken), 1))


def test_gpus_that_all_sides_see_are_described_in_one_row() -> None:
    account = facts(torch=torch(gpu(), gpu()), smi=[smi_gpu(), smi_gpu()])
    (finding,) = gpus("a", account, 2)
    assert finding.status == "ok"
    assert finding.found == (
        f"2 x {H100} (80 GiB, sm_90, bf16); driver 580.65.06, CUDA 13.0, NCCL 2.29.1"
    )


@pytest.mark.parametrize(
    ("account", "offered", "status", "said"),
    [
        (facts(torch=torch(cuda=""), smi=[smi_gpu()]), 1, "fault", "a build for CPUs"),
        (facts(torch=torch(gpu()), smi=[smi_gpu()] * 2), 2, "fault", "sees 1"),
        (facts(torch=torch(), smi=[]), 4, "fault", "Ray offers 4, nvidia-smi lists 0"),
        (
            facts(torch=torch(gpu(error="no kernel image")), smi=[smi_gpu()]),
            1,
            "fault",
            "no kernel",
        ),
        (facts(torch=torch(gpu(), gpu()), smi=[smi_gpu()] * 2), 1, "warning", "offers 1 of 2"),
        (facts(torch=torch(), smi=[smi_gpu()]), 0, "warning", "offers 0 of 1"),
        (facts(), 0, "ok", "none"),
    ],
)
def test_gpus_that_one_side_misses_are_told(
    account: Any, offered: float, status: str, said: str
) -> None:
    (finding,) = gpus("a", account, offered)
    assert finding.status == status
    assert said in finding.found
    assert bool(finding.remedy) == (status != "ok")


def test_a_gpu_of_before_ampere_has_no_bf16() -> None:
    (finding,) = gpus("a", facts(torch=torch(gpu((7, 5))), smi=[smi_gpu()]), 1)
    assert "sm_75, no bf16" in finding.found


def test_nvidia_smis_list_is_read() -> None:
    listed = "NVIDIA H100 80GB HBM3, 580.65.06, 81559\nTesla T4, 580.65.06, [N/A]\n\n"
    assert smi_gpus(listed) == [
        {"name": H100, "driver": "580.65.06", "memory_bytes": 81559 * 2**20},
        {"name": "Tesla T4", "driver": "580.65.06", "memory_bytes": 0},
    ]
