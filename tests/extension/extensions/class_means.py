"""Nearest class mean: an image is of the class whose mean feature is nearest to its own."""

import torch

from dinov2_hf.evaluation import Metrics, match_labels, protocol


@protocol("class_means", task="image-classification", metrics={"class_means_top1": "accuracy"})
def evaluate_class_means(
    extractor, train_dataset, eval_dataset, *, label_column: str = "label", power: float = 2.0, output_dir=None
):
    """Classify images by the nearest class mean.

    Args:
        power: of the differences that make up a distance, above 0.
    """
    labels = match_labels(train_dataset, eval_dataset, label_column)
    if not power > 0:
        raise ValueError(f"`power` is {power}, but must be above 0.")
    train = extractor.features(train_dataset).values
    means = torch.stack([train[labels.train == number].mean(dim=0) for number in range(len(labels.classes))])
    distances = torch.cdist(extractor.features(eval_dataset).values, means, p=power)
    found = Metrics(num_classes=len(labels.classes))
    found["class_means_top1"] = (distances.argmin(dim=1) == labels.eval).double().mean().item()
    return found
