"""Masks, an augmentation and an order of the images of one's own: named in a recipe, and used."""

from itertools import islice

import pytest
import torch
import yaml

from dinov2_hf import DINOv2Config
from dinov2_hf.data import build_batches, load_image_dataset
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments


NAMES = {
    "masks": "random_masks:random_masks", "augmentation": "plain_crops:plain_crops",
    "sample_order": "balanced_order:balanced_order",
}  # fmt: skip
NETWORK = DINOv2Config(image_size=16, patch_size=4)


def first_batches(images, num_batches=4, **values):
    sizes = {"local_crop_size": 8, "num_local_crops": 2, "per_device_train_batch_size": 4, "dataloader_num_workers": 0}
    recipe = PreTrainingArguments(train_data=str(images), **{**sizes, **values})
    return list(islice(build_batches(load_image_dataset(str(images)), recipe, NETWORK), num_batches))


def test_a_run_uses_them_and_says_so(pretrain, capsys, caplog):
    caplog.set_level("INFO")
    plain = yaml.safe_load((pretrain() / "recipe.yaml").read_text())
    assert {plain[name] for name in NAMES} == {"block", "multi_crop", "global"}
    folder = pretrain(yaml.safe_dump(NAMES), "--overwrite_output_dir")
    recipe, card = ((folder / name).read_text() for name in ("recipe.yaml", "model/README.md"))
    for name, value in NAMES.items():
        assert f"{name}: {value}" in recipe
        assert f"{name}: {value}" in card
        assert value in caplog.text


def test_masks_are_those_of_the_function(images):
    ((batch, _),) = first_batches(images, 1, masks=NAMES["masks"], mask_probability=1.0, mask_ratio=[0.25, 0.25])
    grids = batch["bool_masked_pos"].unflatten(1, (4, 4))
    assert (grids.sum(dim=(1, 2)) == 4).all()
    # Four patches of a block touch; of single ones some have no neighbour.
    padded = torch.nn.functional.pad(grids, (1, 1, 1, 1))
    neighbours = padded[:, 2:, 1:-1] | padded[:, :-2, 1:-1] | padded[:, 1:-1, 2:] | padded[:, 1:-1, :-2]
    assert (grids & ~neighbours).any()


def test_crops_are_those_of_the_function(images):
    ((batch, _),) = first_batches(images, 1, augmentation=NAMES["augmentation"])
    assert torch.equal(batch["global_crops"][0], batch["global_crops"][1])
    assert batch["local_crops"].shape == (2, 4, 3, 8, 8)
    ((again, _),) = first_batches(images, 1, augmentation=NAMES["augmentation"])
    assert torch.equal(batch["local_crops"], again["local_crops"])


def test_images_come_in_the_order_of_the_function(images):
    reports = [report for _, report in first_batches(images, sample_order=NAMES["sample_order"])]
    names = [name for report in reports for name in report.row_ids]
    assert sum("few" in name for name in names) == sum("many" in name for name in names) == 8


def test_an_option_that_the_augmentation_does_not_take_is_refused(images):
    with pytest.raises(
        ValueError,
        match="`solarize_probability` is 0.5, but .* plain_crops:plain_crops takes no such option; leave it out",
    ):
        first_batches(images, augmentation=NAMES["augmentation"], solarize_probability=0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"masks": "blok"}, "no kind of masks 'blok'. Did you mean `block`?"),
        ({"augmentation": "plain_crops:plain_crop"}, "it has no 'plain_crop'. Did you mean `plain_crops`?"),
        ({"sample_order": "absent_module:order"}, "there is no module absent_module"),
    ],
)
def test_a_name_of_nothing_is_refused(images, values, message):
    with pytest.raises(ValueError, match="the (kind of masks|augmentation|order of samples)|no kind") as error:
        first_batches(images, **values)
    assert message in str(error.value)
