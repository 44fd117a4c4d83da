"""Crops without changes of colour: two of the whole image, and local ones that are cut out of it."""

import torch
from torchvision.transforms import v2


def plain_crops(*, global_crop_size, local_crop_size, num_local_crops, image_mean, image_std):
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(image_mean, image_std)]
    whole = v2.Compose([v2.Resize([global_crop_size] * 2), *to_tensor])
    part = v2.Compose([v2.RandomResizedCrop(local_crop_size, scale=(0.05, 0.32)), *to_tensor])

    def transform(image):
        local = [part(image) for _ in range(num_local_crops)]
        return torch.stack([whole(image)] * 2), torch.stack(local)

    return transform
