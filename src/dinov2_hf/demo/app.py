"""The layout of the demo, in Gradio. `sight`, `dense_heads` and `gallery` make the pictures."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from PIL import Image
from torch import nn

from ..data import UndecodableImage, decode_image
from ..pictures.patch_similarity import patch_at
from .dense_heads import DenseHead, depth_picture, segmentation_picture
from .gallery import Gallery, search
from .sight import Sight, attention_pictures, compare, look, pca_pictures


# No telemetry, and no check for a newer version. Gradio reads this when it is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr


CSS = """
.gradio-container { max-width: 1080px !important; margin: auto !important; }
footer { display: none !important; }
#picture_first img { cursor: crosshair; }
"""
HOW = """**Click a patch of the first picture.** The brighter another patch, the more its feature is like that of the
patch you clicked; the best matches in the second picture have numbers."""


@dataclass(frozen=True)
class Demo:
    """
    The content of the page.

    Args:
        model, image_processor: a backbone of RGB pictures.
        name: name of the model, above the page.
        image_size: side of the square input, in pixels; `None`: as the image processor is configured.
        depth, segmentation: trained heads, or `None`.
        gallery: the gallery to search in, or `None`.
        samples: sample pictures with their names.
    """

    model: nn.Module
    image_processor: Any
    name: str
    image_size: int | None = None
    depth: DenseHead | None = None
    segmentation: DenseHead | None = None
    gallery: Gallery | None = None
    samples: Sequence[tuple[Image.Image, str]] = field(default_factory=list)


def build_app(demo: Demo) -> gr.Blocks:
    """The page, ready for `launch_app`."""
    with gr.Blocks(title=f"DINOv2: {demo.name}", analytics_enabled=False, delete_cache=(3600, 3600)) as app:
        first, second = gr.State(None), gr.State(None)  # the processed pictures of this visitor
        gr.Markdown(f"# What {escape(demo.name)} sees")
        with gr.Row():
            columns = [_Column(demo, which) for which in ("first", "second")]
        gr.Markdown(HOW)
        with gr.Row():
            pictures = [_image(f"The {column.which} picture", f"picture_{column.which}") for column in columns]
        matches = gr.Markdown(elem_id="matches")
        with gr.Row():
            label = "Its patch features, as colours: equal colours are like features"
            colours = [_image(label, f"pca_{column.which}") for column in columns]
        attention = gr.Gallery(label="What CLS of the first picture attends to", columns=4, elem_id="attention")
        dense = _dense_outputs(demo)
        found = []
        if demo.gallery is not None:
            found = [gr.Gallery(label=f"Most similar of {len(demo.gallery):,} images", columns=6, elem_id="found")]

        def show(own: Sight | None, other: Sight | None) -> list:
            sights = [sight for sight in (own, other) if sight is not None]
            drawn = iter(pca_pictures(sights))
            seen = [sight and sight.picture for sight in (own, other)]
            return [*seen, "", *(sight and next(drawn) for sight in (own, other))]

        def open_first(image: Image.Image | None, other: Sight | None) -> list:
            if image is None:
                return [None, *show(None, other), [], *[None] * len(dense), *([] for _ in found)]
            sight = look(demo.model, demo.image_processor, image, demo.image_size)
            maps = attention_pictures(demo.model, sight)
            hits = [[(hit, f"{cosine:.3f}") for hit, cosine in search(demo.gallery, image)]] if found else []
            return [sight, *show(sight, other), maps, *_dense(demo, image), *hits]

        def open_second(image: Image.Image | None, own: Sight | None) -> list:
            sight = look(demo.model, demo.image_processor, image, demo.image_size) if image is not None else None
            return [sight, *show(own, sight)]

        def click(event: gr.SelectData, own: Sight | None, other: Sight | None):
            if own is None:  # it was removed in the meantime
                return None, gr.skip(), ""
            x, y = event.index
            patch = patch_at(x / own.picture.width, y / own.picture.height, own.grid)
            compared = compare(own, patch, other)
            return compared.own, compared.other, _matches_in_words(patch, compared)

        # All requests run one after the other, because there is only one model.
        run = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        shown = [*pictures, matches, *colours]
        columns[0].when_opened(open_first, second, [first, *shown, attention, *dense, *found], run)
        columns[1].when_opened(open_second, first, [second, *shown], run)
        pictures[0].select(click, [first, second], [*pictures, matches], **run)
    return app


def launch_app(
    app: gr.Blocks, *, host: str, port: int | None, max_upload_mb: int, say: Callable[[str], Any], block: bool = True
) -> None:
    """
    Serve the page.

    Args:
        host: the address to listen on; other machines cannot reach 127.0.0.1.
        port: `None` for the first free one from 7860.
        max_upload_mb: larger files are refused while they arrive.
        say: gets the address of the page.
        block: return only when the server ends.

    Raises:
        ValueError: the address or port cannot be used.
    """
    font = ["system-ui", "sans-serif"]  # the fonts of the theme would be downloaded
    theme = gr.themes.Default(font=font, font_mono=["monospace"])
    app.queue(max_size=64, default_concurrency_limit=1)
    try:
        _, address, _ = app.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=f"{max_upload_mb}mb",
            enable_monitoring=False,
            ssr_mode=False,
            theme=theme,
            css=CSS,
            footer_links=[],
        )
    except OSError as error:
        raise ValueError(f"nothing can listen on {host}{f', port {port}' if port else ''}: {error}") from None
    say(address)
    if block:
        app.block_thread()


class _Column:
    """The column for choosing one of the two pictures: a file or a sample."""

    def __init__(self, demo: Demo, which: str):
        self.samples, self.which = demo.samples, which
        with gr.Column():
            self.upload = gr.File(label=f"Your {which} picture", height=120, elem_id=f"upload_{which}")
            self.gallery = None
            if self.samples:
                self.gallery = gr.Gallery(
                    list(self.samples), label="or one of these", columns=6, height=120, object_fit="cover",
                    allow_preview=False, elem_id=f"samples_{which}",
                )  # fmt: skip

    def when_opened(self, act, other: gr.State, outputs: list, run: dict[str, Any]) -> None:
        """Call `act(image, other)` when a file is uploaded or removed, or a sample is clicked."""

        def of_file(path: str | None, sight: Sight | None):
            try:
                image = decode_image(path) if path is not None else None
            except (UndecodableImage, OSError) as reason:
                said = reason if isinstance(reason, UndecodableImage) else "the file cannot be read"
                gr.Warning(f"This is not a picture that can be shown: {escape(str(said))}.", title="Not opened")
                return [gr.skip() for _ in outputs]
            return act(image, sight)

        def of_sample(event: gr.SelectData, sight: Sight | None):
            return act(self.samples[event.index][0], sight)

        self.upload.change(of_file, [self.upload, other], outputs, **run)
        if self.gallery is not None:
            self.gallery.select(of_sample, other, outputs, **run)


def _image(label: str, elem_id: str) -> gr.Image:
    return gr.Image(label=label, interactive=False, format="png", type="pil", buttons=[], elem_id=elem_id)


def _matches_in_words(patch: tuple[int, int], compared) -> str:
    low, high = compared.limits
    lines = [f"Patch in row {patch[0] + 1}, column {patch[1] + 1}. Black is a cosine of {low:.2f}, yellow {high:.2f}."]
    if compared.matches:
        best = ", ".join(f"**{number}** {cosine:.3f}" for number, (_, _, cosine) in enumerate(compared.matches, 1))
        lines.append(f"Best matches in the second picture: {best}.")
    return " ".join(lines)


def _dense_outputs(demo: Demo) -> list:
    outputs = []
    with gr.Row():
        for task in ("depth", "segmentation"):
            if getattr(demo, task) is not None:
                with gr.Column():
                    outputs += [
                        _image(f"{task.capitalize()} of the first picture", task),
                        gr.HTML(elem_id=f"{task}_is"),
                    ]
    return outputs


def _dense(demo: Demo, image: Image.Image) -> list:
    outputs = []
    if demo.depth is not None:
        picture, (low, high) = depth_picture(demo.depth, image)
        outputs += [picture, f"from {low:.2f} (yellow) to {high:.2f} (violet), in the unit of the head"]
    if demo.segmentation is not None:
        picture, legend = segmentation_picture(demo.segmentation, image)
        words = [
            f'<span style="color:{colour}">&#9632;</span> {escape(name)} {share:.0%}'
            for name, (colour, share) in legend.items()
        ]
        outputs += [picture, " &nbsp; ".join(words)]
    return outputs
