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
