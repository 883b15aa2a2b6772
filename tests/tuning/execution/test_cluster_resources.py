import pytest

from trainers.errors import ConfigError
from tuning.config.schema import ResourcesConfig
from tuning.execution.cluster_resources import check_fits, fitting_trials


def cpus(*numbers):
    return [{"CPU": number, "memory": 1e9} if number else {"memory": 1e9} for number in numbers]


@pytest.mark.parametrize(
    ("nodes", "resources", "fits"),
    [
        (cpus(8), {}, 8),
        (cpus(3, 3), {"cpus_per_worker": 2}, 2),  # and not 3, as 6 CPUs would have it
        (cpus(0, 3, 3), {"workers": 2}, 3),
        (cpus(1, 1, 8), {"workers": 2}, 5),
        ([{"CPU": 16, "GPU": 2}], {"gpus_per_worker": 0.5}, 4),
        ([{"CPU": 16, "GPU": 1}] * 3, {"gpus_per_worker": 0.3}, 9),
        ([{"CPU": 16, "GPU": 2}], {"gpus_per_worker": 0.4}, 4),  # and not 5
        ([{"CPU": 3, "GPU": 8}, {"CPU": 64}], {"gpus_per_worker": 1}, 3),
    ],
)
def test_workers_must_fit_onto_nodes(nodes, resources, fits):
    assert fitting_trials(nodes, ResourcesConfig.model_validate(resources)) == fits


@pytest.mark.parametrize(
    ("nodes", "resources", "problem"),
    [
        (cpus(4), {"workers": 5}, "5 worker(s) of 1 CPU do not fit onto 1 node(s), the largest of"),
        (
            [{"CPU": 64}, {"CPU": 8, "GPU": 1}, {"CPU": 4, "GPU": 1}],
            {"gpus_per_worker": 1, "cpus_per_worker": 9},
            "1 worker(s) of 9 CPU, 1 GPU do not fit onto 3 node(s), the largest of which has 8 CPU,"
            " 1 GPU",
        ),
    ],
)
def test_an_error_names_what_is_missing_for_a_trial(nodes, resources, problem):
    with pytest.raises(ConfigError) as error:
        check_fits(nodes, ResourcesConfig.model_validate(resources))
    assert error.value.key == "search.resources"
    assert problem in error.value.problem
    assert "max_concurrent" in str(error.value.hint)
    check_fits([{"CPU": 64, "GPU": 8}] * 3, ResourcesConfig.model_validate(resources))
