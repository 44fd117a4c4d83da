"""The data (paper section 3): dataset in, dataset out, and a reason kept for every image dropped."""

from .arguments import CurationArguments, read_arguments
from .builder import CuratedImages
from .perceptual_descriptor import PerceptualDescriptor
from .plan import curate


__all__ = ["CuratedImages", "CurationArguments", "PerceptualDescriptor", "curate", "read_arguments"]
