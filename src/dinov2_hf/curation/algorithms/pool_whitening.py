"""The last step of descriptors: it takes away what all pictures of a pool have in common, which tells none apart.

The mean over a sample of the pool is subtracted, and directions of much variance are toned down.

Shapes: `W` width of what an embedder gives, `D` width of the descriptor.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


FEW_IMAGES = 32  # generated pictures make up what is missing


class PoolWhitening(nn.Module):
    """Turns what an embedder gives for a picture into its descriptor.

    Attributes:
        given_width: W.
        width: D; the directions of least variance in the pool are left out.
        toning: variances are raised to the power 1 - 2 * toning: 0 leaves them, 0.5 makes all equal.
        most_toned: at most this many directions are toned down; the others are scaled like the last of them.
        images_per_toned: images in the sample for each direction that is toned down. With too few of them copies in
            the sample would be driven apart as well.
        prior_images: images that count as much as the assumption of mean 0 and equal variances.
    """

    given_width: int
    width: int
    toning: float
    most_toned: int
    images_per_toned: int
    prior_images: int = 0

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(self.given_width), requires_grad=False)
        self.projection = nn.Parameter(torch.eye(self.given_width)[:, -self.width :].clone(), requires_grad=False)

    def of_generated_pictures(self) -> Tensor:
        """(FEW_IMAGES, W): what the embedder gives for pictures that stand for any picture."""
        raise NotImplementedError

    def fit(self, given: Tensor) -> "PoolWhitening":
        """Learn the mean and the variances of a sample.

        Args:
            given: (n, W) by the embedder, n >= 1. The mean of fewer than `FEW_IMAGES` would be what these few have in
                common. Generated pictures make up the number, so two photographs do not seem alike for being alone.
        """
        if len(given) < FEW_IMAGES:
            given = torch.cat([given, self.of_generated_pictures()[len(given) :].to(given)])
        given = given.double()
        weight = len(given) / (len(given) + self.prior_images)
        self.mean.copy_(weight * given.mean(dim=0))
        centred = given - given.mean(dim=0)
        covariance = weight * centred.T @ centred / len(given)
        prior = (given**2).sum(dim=1).mean() / self.given_width
        covariance += (1 - weight) * prior * torch.eye(self.given_width, dtype=torch.float64)
        variances, directions = torch.linalg.eigh(covariance)
        # Without a floor, directions that the sample hardly reaches would be blown up.
        num_toned = min(self.most_toned, max(2, len(given) // self.images_per_toned))
        floor = variances[-num_toned].clamp(min=1e-12)
        scales = (variances.clamp(min=floor) / floor) ** -self.toning
        self.projection.copy_((directions * scales)[:, -self.width :])
        return self

    def forward(self, given: Tensor) -> Tensor:
        """(B, W) to (B, D) of unit length; an input of zeros gives the zero vector."""
        centred = (given - self.mean) @ self.projection
        return F.normalize(centred, dim=-1) * (given.abs().amax(dim=-1, keepdim=True) > 0)
