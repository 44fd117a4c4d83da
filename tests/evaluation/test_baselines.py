"""Raw pixels in the place of features."""

import torch

from dinov2_hf.evaluation.baselines import PixelModel


def test_large_images_are_averaged_down():
    pixels = torch.randn(2, 3, 4, 6)
    expected = torch.zeros(2, 3, 2, 2)
    for row in range(2):
        for column in range(2):
            block = pixels[:, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            expected[:, :, row, column] = block.mean(dim=(2, 3))
    found = PixelModel(largest_side=2)(pixels).last_hidden_state
    torch.testing.assert_close(found, expected.flatten(1).unsqueeze(1))


def test_small_images_stay_as_they_are():
    pixels = torch.randn(2, 3, 4, 6)
    for model in (PixelModel(), PixelModel(largest_side=6)):
        assert torch.equal(model(pixels).last_hidden_state, pixels.flatten(1).unsqueeze(1))
