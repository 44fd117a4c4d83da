import datasets
import pytest
from datasets import Dataset, Features, Image, Value

from dinov2_hf.data.reading.image_columns import describe_row, find_image_column, first_images
from dinov2_hf.data.reading.image_dataset import load_image_dataset
from tests.data.conftest import encode, noise_image


PNG = encode(noise_image(0, 8, 8))


def test_a_missing_or_wrong_column_is_named(tmp_path):
    dataset = Dataset.from_dict({"text": ["a"], "number": [1]})
    with pytest.raises(ValueError, match="none of the data set's columns holds images: text, number"):
        find_image_column(dataset)
    with pytest.raises(ValueError, match="'picture', but the data set has the columns: text, number"):
        find_image_column(dataset, "picture")
    with pytest.raises(ValueError, match="'number', but that column holds .*int64"):
        find_image_column(dataset, "number")


@pytest.mark.parametrize(
    ("columns", "taken"),
    [
        ({"mask": Image(), "image": Image()}, "image"),
        ({"mask": Image(), "Image": Image(), "annotation": Image()}, "Image"),
        ({"jpg": Value("binary"), "photo": Image()}, "photo"),
        ({"mask": Value("binary"), "jpg": Value("binary")}, "jpg"),
        ({"mask": Image(), "photo": Image()}, None),
        ({"jpg": Image(), "png": Image()}, None),
        ({"jpg": Value("binary"), "png": Value("binary")}, None),
    ],
)
def test_of_several_image_columns_none_is_taken_silently(columns, taken):
    dataset = Dataset.from_dict({name: [PNG] for name in columns}, features=Features(columns))
    for name in columns:
        assert find_image_column(dataset, name) == name
    if taken:
        assert find_image_column(dataset) == taken
    else:
        with pytest.raises(ValueError, match=f"2 columns of the data set hold images, {', '.join(columns)}: name the"):
            find_image_column(dataset)


def test_a_stream_of_untyped_rows():
    dataset = datasets.IterableDataset.from_generator(lambda: iter([{"n": 1, "image": {"bytes": PNG, "path": "a"}}]))
    assert find_image_column(dataset) == "image"


def test_rows_are_described():
    assert describe_row({"bytes": None, "path": "cats/7.jpg"}, 123) == "row 123 (cats/7.jpg)"
    assert describe_row({"bytes": b"", "path": None}, 123) == "row 123"


def test_first_images_passes_over_broken_ones(tmp_path):
    for index in range(4):
        (tmp_path / f"{index}.png").write_bytes(encode(noise_image(0, index + 1, 2)))
    (tmp_path / "1.png").write_bytes(b"")
    dataset = load_image_dataset(str(tmp_path))
    assert [image.size for image in first_images(dataset, "image", 2)] == [(2, 1), (2, 3)]
    assert len(first_images(dataset, "image", 9)) == 3
