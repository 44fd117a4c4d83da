import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf.cli.backbone import load_backbone
from dinov2_hf.data import UndecodableImage, decode_image, load_image_dataset
from dinov2_hf.features import FeatureExtractor


pytest.importorskip("faiss")

from dinov2_hf.demo.gallery import build_gallery, search
from dinov2_hf.pictures.nearest_images import square_picture


def test_what_is_found_is_a_sorted_loop(folders, gallery_folder):
    model, processor = load_backbone(str(folders["backbone"]))
    dataset = load_image_dataset(str(gallery_folder), split="train")
    gallery = build_gallery(FeatureExtractor(model, processor), dataset)
    assert (len(dataset), len(gallery)) == (10, 9)

    def feature(image: Image.Image) -> torch.Tensor:
        pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            return model(pixels).pooler_output[0]

    query = Image.new("RGB", (50, 50), (200, 30, 30))
    expected = []
    for row in range(len(dataset)):
        try:
            image = decode_image(dataset[row]["image"])
        except UndecodableImage:
            continue
        cosine = torch.cosine_similarity(feature(query), feature(image), dim=0).item()
        expected.append((cosine, square_picture(image).tobytes()))
    expected.sort(reverse=True)
    found = search(gallery, query, 4)
    assert [cosine for _, cosine in found] == pytest.approx([cosine for cosine, _ in expected[:4]], abs=1e-5)
    assert [picture.tobytes() for picture, _ in found] == [picture for _, picture in expected[:4]]
    assert len(search(gallery, query, 99)) == 9


def test_features_that_are_nearly_the_same_are_found_in_their_order(folders, gallery_folder):
    """Their cosines differ from 1 by less than float32 can tell."""
    model, processor = load_backbone(str(folders["backbone"]))

    class NearlyConstant(torch.nn.Module):
        """A common vector of length 1, and a part in 100,000 of the features of the model."""

        def __init__(self):
            super().__init__()
            self.model, self.config = model, model.config

        def forward(self, pixel_values):
            out = self.model(pixel_values)
            common = torch.zeros_like(out.last_hidden_state)
            common[..., 0] = 1
            out.last_hidden_state = common + 1e-5 * torch.nn.functional.normalize(out.last_hidden_state, dim=-1)
            out.pooler_output = out.last_hidden_state[:, 0]
            return out

    dataset = load_image_dataset(str(gallery_folder), split="train")
    extractor = FeatureExtractor(NearlyConstant(), processor)
    gallery = build_gallery(extractor, dataset)
    query = Image.effect_noise((50, 50), 90).convert("RGB")
    vectors = extractor.features(dataset, skip_undecodable=True).values.double().numpy()
    own = extractor.features([{"image": query}]).values.double().numpy()
    vectors, own = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (vectors, own))
    distances = np.square(vectors - own).sum(axis=1)  # 2 - 2 cosines
    expected = [square_picture(decode_image(dataset[int(gallery.rows[row])]["image"])) for row in distances.argsort()]
    found = search(gallery, query, len(gallery))
    assert [picture.tobytes() for picture, _ in found] == [picture.tobytes() for picture in expected]
