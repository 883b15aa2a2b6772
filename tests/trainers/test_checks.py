import pytest

from tests.images import write_photo_and_sketch, write_split
from trainers.checks import check_batch, check_data
from trainers.config import TrialConfig
from trainers.data.config import DataConfig
from trainers.errors import ConfigError

ID = ("ant", "bee", "cat")


@pytest.fixture
def root(tmp_path):
    return write_photo_and_sketch(tmp_path, ID)


def data(root, **values):
    return DataConfig.model_validate(
        {"root": str(root), "id_domain": "photo", "ood_domains": ["sketch"], **values}
    )


def test_sound_data_and_parts_of_the_classes_pass(root):
    check_data(data(root))
    write_split(root, "sketch", "val", ("cat", "ant"))
    check_data(data(root))
    write_split(root, "sketch", "val", ("pet",))
    rules = {"sketch": {"class_map": {"pet": ["cat"]}}}
    check_data(data(root, suite={"id_domain": "photo", "domains": rules}))


def refused(root, said, **values):
    with pytest.raises(ConfigError, match=said) as caught:
        check_data(data(root, **values))
    assert "\n" not in str(caught.value)


def test_classes_that_do_not_fit_are_refused(root):
    write_split(root, "sketch", "val", ("cat", "cow"))
    refused(root, "sketch: 'cow': no class of photo, which has 3 .in a suite of your own")
    skip = {"id_domain": "photo", "domains": {"sketch": {"unknown_classes": "skip"}}}
    check_data(data(root, suite=skip))


def test_the_id_validation_split_is_checked_too(root):
    write_split(root, "photo", "val", ("ant", "bee", "cat", "dog"))
    refused(root, "photo: 'dog': no class of photo")


def test_class_names_without_a_prompt_are_an_error(root):
    names = {"id_domain": "photo", "name": "mine", "class_names": {"ant": "an ant", "bee": "bee"}}
    refused(root, "suite 'mine': class_names: has no name for 'cat'", suite=names)


@pytest.mark.parametrize("name", ["flyp", "autoft", "ft"])
def test_a_loss_that_compares_images_needs_as_many_as_a_batch(name, root, caplog):
    """Others are warned."""
    method = {"name": name, "contrastive_weight": 0.1} if name == "autoft" else {"name": name}
    three, four = (
        TrialConfig(data=data(root), method=method, optim={"batch_size": size}) for size in (3, 4)
    )
    check_batch(three)
    assert caplog.messages == []
    if name == "ft":
        check_batch(four)
        assert "optim.batch_size = 4: of 3 training images, a step has some of them" in caplog.text
        return
    with pytest.raises(ConfigError, match=f"of 3 training images, {name} would compare") as caught:
        check_batch(four)
    error = caught.value
    assert (error.key, error.value, error.hint) == ("optim.batch_size", 4, "write 3 or less")
