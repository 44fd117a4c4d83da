"""Videos: evenly spaced frames, pooled, then a linear classifier."""

import io
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf.data import UndecodableImage
from dinov2_hf.data.decoding.video_frames import decode_frames, frame_indices
from dinov2_hf.data.reading.video_dataset import load_video_dataset
from dinov2_hf.evaluation.video import FramesModel, evaluate_video, process_frames
from dinov2_hf.features import FeatureExtractor, image_features

from .coloured_images import coloured_image


OPTIONS = {"grid": "paper", "num_steps": 60, "train_batch_size": 8, "num_frames": 4}


def frames_of(colours, generator):
    return [coloured_image(colour, generator) for colour in colours]


def video_file(frames) -> bytes:
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return buffer.getvalue()


def rows_of(kinds, count, seed, as_file=False):
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        for label, colours in kinds.items():
            frames = frames_of(colours, generator)
            rows.append({"video": video_file(frames) if as_file else frames, "label": label})
    return rows


def test_frames_are_the_middles_of_equal_parts():
    assert frame_indices(8, 8) == list(range(8))
    assert frame_indices(80, 8) == [5, 15, 25, 35, 45, 55, 65, 75]
    assert frame_indices(3, 8) == [0, 0, 0, 1, 1, 2, 2, 2]
    assert frame_indices(1, 2) == [0, 0]


def test_frames_of_a_file_are_those_that_were_written():
    colours = ["red", "green", "blue", "white", "black", "yellow"] * 2
    generator = np.random.default_rng(0)
    frames = frames_of(colours, generator)
    decoded = decode_frames(video_file(frames), 6)
    for index, frame in zip(frame_indices(12, 6), decoded, strict=True):
        expected, found = (np.asarray(one, dtype=float).mean(axis=(0, 1)) for one in (frames[index], frame))
        np.testing.assert_allclose(found, expected, atol=12)  # the codec loses colour
    assert [frame.size for frame in decode_frames(frames, 3)] == [(32, 32)] * 3


def test_what_cannot_be_decoded_is_named():
    with pytest.raises(UndecodableImage, match="no frames"):
        decode_frames([], 8)
    pytest.importorskip("av")
    with pytest.raises(UndecodableImage, match="Invalid"):
        decode_frames(b"no video", 8)


@pytest.mark.parametrize("concatenate", [False, True])
def test_pooling_is_a_loop_over_frames(model, processor, concatenate):
    videos = [frames_of(["red", "green", "blue"], np.random.default_rng(seed)) for seed in range(2)]
    pixel_values = process_frames(processor, videos, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (2, 3, 3, 32, 32)
    with torch.no_grad():
        features = image_features(FramesModel(model, concatenate), pixel_values)
        for video, feature in zip(videos, features, strict=True):
            each = [
                image_features(model, processor(images=[one], return_tensors="pt")["pixel_values"])[0] for one in video
            ]
            expected = torch.cat(each) if concatenate else torch.stack(each).mean(dim=0)
            torch.testing.assert_close(feature, expected, atol=1e-5, rtol=1e-5)


def test_the_mean_forgets_the_order_and_concatenation_does_not(tmp_path, extractor):
    there, back = ["red", "red", "blue", "blue"], ["blue", "blue", "red", "red"]
    kinds = {"there": there, "back": back}
    train, evaluated = rows_of(kinds, 6, 0), rows_of(kinds, 6, 1)
    ordered = evaluate_video(
        extractor,
        train,
        evaluated,
        frame_pooling="concatenate",
        output_dir=tmp_path,
        **OPTIONS,
    )
    assert ordered["video_top1"] == 1.0
    assert Image.open(tmp_path / "video.png").width > 300
    kinds = {"there": there, "red": ["red"] * 4}
    metrics = evaluate_video(extractor, rows_of(kinds, 6, 0), rows_of(kinds, 2, 1), **OPTIONS)
    assert metrics["video_top1"] == 1.0


def test_files_and_lists_of_frames_in_datasets(tmp_path, monkeypatch, extractor):
    kinds = {"fire": ["red", "yellow"] * 4, "sea": ["blue"] * 8}
    labels = datasets.ClassLabel(names=["fire", "sea"])
    of_files = datasets.Dataset.from_list(
        rows_of(kinds, 4, 0, as_file=True),
        datasets.Features({"video": datasets.Value("binary"), "label": datasets.Value("string")}),
    )
    of_lists = datasets.Dataset.from_list(
        [{**row, "label": labels.str2int(row["label"])} for row in rows_of(kinds, 2, 1)],
        datasets.Features({"video": datasets.List(datasets.Image()), "label": labels}),
    )
    of_lists.to_parquet(tmp_path / "videos.parquet")
    loaded, column = load_video_dataset(str(tmp_path / "videos.parquet"))
    assert column == "video"
    assert loaded.features["label"].names == ["fire", "sea"]
    metrics = evaluate_video(extractor, of_files, loaded, **OPTIONS)
    assert metrics["video_top1"] == 1.0
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "av", None)  # as if it were not installed
        few = {**OPTIONS, "train_batch_size": 4}
        assert evaluate_video(extractor, loaded, loaded, **few)["video_top1"] == 1.0
        with pytest.raises(ImportError, match=r'video of files needs PyAV.*pip install "dinov2_hf\[evaluation\]"'):
            evaluate_video(extractor, loaded, of_files, **few)
    of_lists.remove_columns("video").to_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="no column holds videos"):
        load_video_dataset(str(tmp_path / "none.parquet"))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_video_dataset(str(tmp_path / "missing.parquet"))


def test_broken_videos_are_left_out_of_training_only(caplog, extractor):
    rows = rows_of({"red": ["red"] * 4, "blue": ["blue"] * 4}, 6, 0)
    broken = [{"video": [], "label": "red"}, *rows]
    metrics = evaluate_video(extractor, broken, rows, **OPTIONS)
    assert metrics["video_top1"] == 1.0
    assert "1 training images cannot be decoded" in caplog.text
    with pytest.raises(ValueError, match="row 0 cannot be decoded .the video has no frames"):
        evaluate_video(extractor, rows, broken, **OPTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 0}, "`num_frames` is 0"),
        ({"grid": "x"}, '`grid` is "x"'),
        ({"train_batch_size": 99}, "`train_batch_size` is 99"),
    ],
)
def test_mistakes_are_named(model, processor, change, message):
    rows = rows_of({"red": ["red"], "blue": ["blue"]}, 4, 0)
    with pytest.raises(ValueError, match=message):
        evaluate_video(FeatureExtractor(model, processor), rows, rows, **OPTIONS | change)
