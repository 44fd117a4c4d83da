"""Several data sets and several sizes of crops in one sequence of batches."""

from collections import Counter
from dataclasses import replace
from itertools import chain, islice

import pytest
import torch

from dinov2_hf.data import MultiCropTransform, PreTrainingCollator, build_loader
from dinov2_hf.data.mixture import Mixture
from dinov2_hf.data.reading.mixed_images import COLUMN, load_mixed_images, read_entries
from dinov2_hf.data.sample_order import PreTrainingBatchSampler

from .conftest import encode, make_dataset, noise_image


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """10 images in "picture" of one file, and 30 in "image" of another, with weights 1 and 3."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("few", 10), ("many", 30)):
        rows = make_dataset([encode(noise_image(100 * count + number)) for number in range(count)])
        rows = rows.rename_column("image", "picture") if name == "few" else rows
        rows.to_parquet(folder / f"{name}.parquet")
    entries = read_entries([
        {"path": str(folder / "few.parquet"), "weight": 1}, {"path": str(folder / "many.parquet"), "weight": 3},
    ])  # fmt: skip
    return load_mixed_images(entries)


@pytest.fixture(scope="module")
def only_many(mixed):
    return replace(mixed, parts=mixed.parts[1:], weights=[2.0], images=mixed.images.select(range(10, 40)))


def keys(mixed, num_batches, batch_size=4, *, turn=1, **options):
    of_all = {"seed": 5, **options}
    batch_images = batch_size * of_all.get("world_size", 1)
    mixture = Mixture(mixed, "global", seed=5, batch_images=batch_images, images_per_turn=turn)
    sampler = PreTrainingBatchSampler(len(mixed), batch_size, mixture=mixture, **of_all)
    return list(islice(sampler, num_batches))


def test_rows_are_of_each_data_set_by_its_weight_and_in_passes_of_its_own(mixed):
    rows = [key.row for key in chain.from_iterable(keys(mixed, 2500))]
    few, many = ([row for row in rows if (row < 10) == is_few] for is_few in (True, False))
    assert (len(few), len(many)) == (2500, 7500)
    assert set(Counter(few).values()) == set(Counter(many).values()) == {250}
    assert all(sorted(few[start : start + 10]) == list(range(10)) for start in range(0, 2500, 10))
    assert all(sorted(many[start : start + 30]) == list(range(10, 40)) for start in range(0, 7500, 30))


def test_steps_of_one_data_set(mixed):
    batches = [{key.row < 10 for key in batch} for batch in keys(mixed, 400, batch_size=2, turn=4)]
    assert all(len(kinds) == 1 for kinds in batches)
    assert batches[::2] == batches[1::2]  # a step is two accumulated batches of 2
    assert {True} in batches
    assert {False} in batches


def test_a_mixture_is_entered_anywhere_by_any_number_of_processes(mixed):
    alone = list(chain.from_iterable(keys(mixed, 30, batch_size=6)))
    ranks = [keys(mixed, 20, batch_size=3, rank=rank, world_size=2, start_sample=60) for rank in range(2)]
    later = [key for blocks in zip(*ranks, strict=True) for block in blocks for key in block]
    assert later == alone[60:180]


def test_one_data_set_alone_is_in_its_usual_order(only_many):
    assert keys(only_many, 20) == list(islice(PreTrainingBatchSampler(30, 4, seed=5), 20))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_of_several_sizes_resume_exactly(mixed, num_workers):
    sizes = ((32, 16), (48, 24))
    transforms = [
        MultiCropTransform(global_crop_size=side, local_crop_size=local, num_local_crops=2) for side, local in sizes
    ]

    def batches(start, number):
        loader = build_loader(
            mixed, COLUMN, transforms, PreTrainingCollator(8), batch_size=2, seed=1, start_sample=start,
            num_workers=num_workers, crop_weights=[1, 1], images_per_step=4,
        )  # fmt: skip
        return list(islice(loader, number))

    first = batches(0, 12)
    found = [(batch["global_crops"].shape[-1], batch["local_crops"].shape[-1]) for batch, _ in first]
    assert set(found) == set(sizes)
    assert found[::2] == found[1::2]  # both batches of a step
    for (batch, report), (again, same) in zip(first[5:], batches(10, 7), strict=True):
        assert report.row_ids == same.row_ids
        assert batch["bool_masked_pos"].shape[1] == (batch["global_crops"].shape[-1] // 8) ** 2
        assert all(torch.equal(value, again[name]) for name, value in batch.items())


def test_a_stream_has_several_sizes_too(stream):
    transforms = [MultiCropTransform(global_crop_size=s, local_crop_size=16, num_local_crops=1) for s in (32, 48)]

    def batches(start, number):
        loader = build_loader(
            stream, "image", transforms, PreTrainingCollator(8), batch_size=2, seed=1, start_sample=start,
            crop_weights=[1, 1],
        )  # fmt: skip
        return [batch["global_crops"] for batch, _ in islice(loader, number)]

    whole = batches(0, 8)
    assert {crops.shape[-1] for crops in whole} == {32, 48}
    assert all(torch.equal(one, other) for one, other in zip(whole[3:], batches(6, 5), strict=True))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"weight": 1}], "without a path"),
        ([{"path": "a", "wieght": 1}], "unknown key `wieght` beside a. Did you mean `weight`"),
        ([{"path": "a", "weight": 0}], "gives a the weight 0; it must be a number above 0"),
        ([{"path": "a", "weight": "much"}], "gives a the weight much"),
    ],
)
def test_mistakes_in_entries(entries, message):
    with pytest.raises(ValueError, match=message):
        read_entries(entries)


def test_what_entries_may_be():
    assert read_entries("a") == read_entries(["a"]) == "a"
    assert read_entries(["a", {"path": "b", "weight": 2}]) == [
        {"path": "a", "weight": 1.0}, {"path": "b", "weight": 2},
    ]  # fmt: skip


def test_impossible_mixtures_are_refused(mixed):
    with pytest.raises(ValueError, match="sample_order is 'sharded', which deals the rows of one data set out"):
        Mixture(mixed, "sharded", seed=0, batch_images=4)
    with pytest.raises(ValueError, match="number 1 of train_data has 10 images, but .* would have 12 of it"):
        Mixture(mixed, "global", seed=0, batch_images=48)
    with pytest.raises(ValueError, match="would have 16 of it"):
        Mixture(mixed, "global", seed=0, batch_images=16, images_per_turn=16)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same two, as files: at the end of every pass over a parquet file `datasets` waits."""
    path = tmp_path_factory.mktemp("folders")
    for name, count in (("few", 10), ("many", 30)):
        (path / name).mkdir()
        for number in range(count):
            noise_image(100 * count + number).save(path / name / f"{number}.png")
    return [{"path": str(path / "few"), "weight": 1}, {"path": str(path / "many"), "weight": 3}]


def streamed(folders, num_batches, **options):
    images = load_mixed_images(folders, streaming=True)
    crops = MultiCropTransform(global_crop_size=16, local_crop_size=8, num_local_crops=1)
    loader = build_loader(
        images, COLUMN, crops, PreTrainingCollator(4), batch_size=4, seed=5, shuffle_buffer_size=6, **options
    )
    return list(islice(loader, num_batches))


def test_streams_are_mixed_by_the_same_turns(folders, mixed):
    """Over two processes together, each data set in passes of its own."""
    ranks = [streamed(folders, 40, rank=rank, world_size=2) for rank in range(2)]
    found = [report.row_ids for both in zip(*ranks, strict=True) for _, report in both]
    turns = Mixture(mixed, "global", seed=5, batch_images=8).turns
    assert [row_id.split()[1].startswith("0:") for ids in found for row_id in ids] == [
        turns.at(position)[0] == 0 for position in range(2 * 40 * 4)
    ]
    for number, count in ((0, 10), (1, 30)):
        of_one = [row_id.split("(")[1] for ids in found for row_id in ids if row_id.startswith(f"row {number}:")]
        assert set(Counter(of_one[: count * (len(of_one) // count)]).values()) >= {len(of_one) // count}


@pytest.mark.parametrize(("num_workers", "start", "options"), [
    (0, 5, {}), (1, 7, {}), (0, 6, {"one_set_a_step": True, "images_per_step": 8}),
])  # fmt: skip
def test_mixed_streams_are_resumed_exactly(folders, num_workers, start, options):
    uninterrupted = streamed(folders, 12, num_workers=num_workers, **options)
    if options:
        kinds = [{row_id.split(":")[0] for row_id in report.row_ids} for _, report in uninterrupted]
        assert all(len(kind) == 1 for kind in kinds)
        assert kinds[::2] == kinds[1::2]
    for positions in (uninterrupted[start - 1][1].positions, None):
        again = streamed(
            folders, 12 - start, num_workers=num_workers, start_sample=4 * start, positions=positions, **options
        )
        for (batch, report), (other, other_report) in zip(again, uninterrupted[start:], strict=True):
            assert report.row_ids == other_report.row_ids
            assert all(torch.equal(value, other[name]) for name, value in batch.items())
