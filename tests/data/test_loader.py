from itertools import islice

import datasets
import pytest
import torch
from torch.utils.data import get_worker_info

from dinov2_hf.data.collator import PreTrainingCollator
from dinov2_hf.data.loader import build_loader
from dinov2_hf.data.multi_crop import MultiCropTransform
from tests.data.conftest import encode, make_dataset, noise_image


TRANSFORM = MultiCropTransform(global_crop_size=16, local_crop_size=8, num_local_crops=2)
COLLATOR = PreTrainingCollator(4)


def first_batches(num_batches, dataset, *, batch_size=4, seed=0, **options):
    loader = build_loader(dataset, "image", TRANSFORM, COLLATOR, batch_size=batch_size, seed=seed, **options)
    return list(islice(loader, num_batches))


def check_equal(batches, others):
    assert len(batches) == len(others)
    for (batch, report), (other, other_report) in zip(batches, others, strict=True):
        assert report == other_report
        assert batch.keys() == other.keys()
        for name, value in batch.items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("streaming", [False, True])
def test_data_without_a_single_image_stops_the_run(streaming):
    dataset = make_dataset([b"no image"] * 3)
    with pytest.raises(ValueError, match="20 images in a row could not be decoded"):
        first_batches(1, dataset.to_iterable_dataset() if streaming else dataset, batch_size=1)


def test_batches_do_not_depend_on_the_number_of_workers(dataset):
    check_equal(first_batches(8, dataset, num_workers=2), first_batches(8, dataset, num_workers=0))


@pytest.mark.parametrize("order", ["global", "sharded"])
def test_resuming_gives_the_tail(dataset, order):
    uninterrupted = first_batches(9, dataset, sample_order=order)
    check_equal(first_batches(3, dataset, sample_order=order, start_sample=6 * 4), uninterrupted[6:])


def test_two_processes_see_what_one_sees(dataset):
    alone = first_batches(7, dataset, batch_size=4)
    ranks = [first_batches(7, dataset, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for (batch, report), (first, first_report), (second, second_report) in zip(alone, *ranks, strict=True):
        assert report.row_ids == first_report.row_ids + second_report.row_ids
        assert torch.equal(batch["local_crops"], torch.cat([first["local_crops"], second["local_crops"]], dim=1))


def test_every_broken_image_is_reported_once_per_pass(dataset):
    reports = [report for _, report in first_batches(6, dataset)]
    skipped = [image.row_id for report in reports for image in report.skipped]
    assert {"row 5 (5.png)", "row 6 (6.png)", "row 17 (17.png)"} == set(skipped)
    assert sum(len(report.row_ids) for report in reports) == 24


@pytest.mark.parametrize("is_known", [True, False], ids=["its place is known", "it is read again"])
@pytest.mark.parametrize(("num_workers", "start_batch"), [(0, 7), (1, 3), (2, 1), (2, 4), (2, 7)])
def test_a_stream_is_resumed_exactly(stream, num_workers, start_batch, is_known):
    """And once more, from what the resumed one tells."""
    options = {"num_workers": num_workers, "shuffle_buffer_size": 5, "batch_size": 3}
    uninterrupted = first_batches(14, stream, **options)
    before = uninterrupted[:start_batch]
    for start in (start_batch, start_batch + 3):
        options["positions"] = before[-1][1].positions if is_known else None
        again = first_batches(14 - start, stream, start_sample=3 * start, **options)
        check_equal(*map(without_positions, (again, uninterrupted[start:])))
        before = again[:3]


def without_positions(batches):
    return [(batch, report._replace(positions=None)) for batch, report in batches]


def test_a_stream_of_one_of_two_processes_is_resumed_where_it_was(encoded_images):
    """Without reading again what it has read; a row ahead of each shard, and what is in the buffer."""
    names = []

    def note(row):
        names.append(row["image"]["path"])
        return row

    stream = make_dataset(encoded_images).cast_column("image", datasets.Image(decode=False))
    stream = stream.to_iterable_dataset(num_shards=4)
    stream = stream.map(note, features=stream.features)
    options = {"batch_size": 2, "rank": 1, "world_size": 2, "shuffle_buffer_size": 4}
    uninterrupted = first_batches(20, stream, **options)
    names.clear()
    options["positions"] = uninterrupted[16][1].positions
    again = first_batches(3, stream, start_sample=17 * 4, **options)
    check_equal(*map(without_positions, (again, uninterrupted[17:])))
    assert len(names) <= 3 * 2 + 2 + 4 + 4
    with pytest.raises(ValueError, match="worker 0 are after 34 images of 1 .*, but the run has taken 32 of 1"):
        first_batches(1, stream, start_sample=16 * 4, **options)


def test_a_stream_starts_at_whole_batches(stream):
    with pytest.raises(ValueError, match=r"start_sample is 7, .* a multiple of batch_size x world_size \(3 x 1\)"):
        first_batches(1, stream, batch_size=3, start_sample=7)


def names_of(batches):
    return [row_id.split("(")[1] for _, report in batches for row_id in report.row_ids]


def test_every_pass_over_a_stream_is_complete_and_new(encoded_images):
    images = [image for number, image in enumerate(encoded_images) if number not in (5, 6, 17, 20)]
    stream = make_dataset(images).to_iterable_dataset(num_shards=4)
    names = names_of(first_batches(10, stream, shuffle_buffer_size=8))
    assert sorted(names[:20]) == sorted(names[20:])
    assert len(set(names[:20])) == 20
    assert names[:20] != names[20:]


@pytest.mark.parametrize("num_shards", [4, 3])
def test_processes_share_a_stream(encoded_images, num_shards):
    images = [image for number, image in enumerate(encoded_images) if number not in (5, 6, 17, 20)]
    stream = make_dataset(images).to_iterable_dataset(num_shards=num_shards)
    first, second = (names_of(first_batches(5, stream, batch_size=2, rank=r, world_size=2)) for r in range(2))
    assert len(set(first + second)) == 20


def test_a_broken_image_in_a_stream_takes_one_place(stream):
    batches = first_batches(12, stream, batch_size=2, shuffle_buffer_size=1)
    skipped = [image.row_id.split("(")[1] for _, report in batches for image in report.skipped]
    assert sorted(skipped) == ["17.png)", "5.png)", "6.png)"]
    assert len(set(names_of(batches))) == 21


def test_no_more_workers_than_shards(dataset):
    stream = dataset.to_iterable_dataset(num_shards=2)
    with pytest.warns(UserWarning, match="num_workers is 3, but the stream has only 2 shards"):
        batches = first_batches(4, stream, num_workers=3)
    check_equal(batches, first_batches(4, stream, num_workers=2))


def test_an_empty_share_of_a_stream_is_an_error():
    stream = make_dataset([encode(noise_image(0))]).to_iterable_dataset()
    with pytest.raises(ValueError, match="gave no images .*rank 1 of 2"):
        first_batches(1, stream, batch_size=1, rank=1, world_size=2)


def test_workers_compute_on_one_thread(dataset):
    def threads(image):
        found = torch.get_num_threads() if get_worker_info() else -1  # where the size of a sample is looked up
        return torch.full((2, 3, 8, 8), float(found)), torch.zeros(0, 3, 4, 4)

    loader = build_loader(dataset, "image", threads, COLLATOR, batch_size=2, seed=0, num_workers=1)
    assert next(loader)[0]["global_crops"].unique().tolist() == [1]


@pytest.mark.parametrize(
    ("crops", "found"),
    [
        ((torch.zeros(2, 1, 8, 8), torch.zeros(0, 3, 4, 4)), r"global crops .* are \(2, 1, 8, 8\)"),
        ((torch.zeros(2, 3, 8, 8), []), "local crops .* are list"),
    ],
)
def test_what_is_no_crops_is_refused(dataset, crops, found):
    with pytest.raises(ValueError, match=found):
        build_loader(dataset, "image", lambda image: crops, COLLATOR, batch_size=2, seed=0)
