"""
What `PipelineTesterMixin` runs on our tiny models. transformers' own checks of the single pipelines are not in its
source distribution.
"""

import numpy as np
import torch
from PIL import Image
from transformers import pipeline


class PipelineChecks:
    """The interface that the mixin calls; float16 models run in float16."""

    task: str

    def get_test_pipeline(self, model, tokenizer, image_processor, dtype):
        """The pipeline and images of different sizes and modes."""
        rng = np.random.default_rng(0)
        shapes = [(40, 60, 3), (64, 48, 3), (50, 50, 4), (48, 72)]
        images = [Image.fromarray(rng.integers(256, size=shape, dtype=np.uint8)) for shape in shapes]
        model = model.to(getattr(torch, dtype))
        return pipeline(self.task, model=model, image_processor=image_processor, device=model.device), images

    def outputs_of_the_model(self, pipe, image):
        inputs = pipe.image_processor(image, return_tensors="pt").to(pipe.model.device)
        with torch.no_grad():
            return pipe.model(**inputs)


class ImageFeatureExtractionChecks(PipelineChecks):
    task = "image-feature-extraction"

    def run_pipeline_test(self, pipe, images):
        expected = [self.outputs_of_the_model(pipe, image) for image in images]
        assert expected[0].last_hidden_state.dtype == pipe.model.dtype
        for features, outputs in zip(pipe(images), expected, strict=True):
            assert features == outputs.last_hidden_state.tolist()
        assert torch.equal(pipe(images[0], return_tensors=True), expected[0].last_hidden_state)
        assert pipe(images[0], pool=True) == expected[0].pooler_output.tolist()


class ImageClassificationChecks(PipelineChecks):
    task = "image-classification"

    def run_pipeline_test(self, pipe, images):
        names = pipe.model.config.id2label
        for found, image in zip(pipe(images, top_k=len(names)), images, strict=True):
            scores = self.outputs_of_the_model(pipe, image).logits[0].float().softmax(dim=0)
            order = scores.argsort(descending=True).tolist()
            assert [prediction["label"] for prediction in found] == [names[label] for label in order]
            torch.testing.assert_close(torch.tensor([prediction["score"] for prediction in found]), scores[order])
        assert len(pipe(images[0], top_k=2)) == 2
