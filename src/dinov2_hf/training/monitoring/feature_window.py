"""The teacher's features and targets of the steps since the last log line, over all processes, as a few numbers."""

from collections import deque
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from .feature_statistics import effective_rank, entropy_of, mean_pair_cosine


# Number of features of each kind for the statistics, over all processes. The rank cannot exceed this number. 1024
# features of size 1024 take 4 MiB and 0.2 s on a CPU core.
NUM_FEATURES = 1024


class FeatureWindow:
    """
    It only stores references, so that adding a step costs nothing. It keeps the latest features, as many as needed.
    """

    def __init__(self, num_features: int = NUM_FEATURES):
        self.num_features = num_features
        self.features: dict[str, deque[Tensor]] = {"cls": deque(), "patch": deque()}
        self.target_sum: Tensor | float = 0.0
        self.entropy_sum: Tensor | float = 0.0
        self.num_added = 0

    def add(self, output: Mapping[str, Tensor]) -> None:
        """Count one forward pass by its `cls_features`, `patch_features`, `mean_target` and `target_entropy`."""
        for name, kept in self.features.items():
            if output.get(f"{name}_features") is not None:
                kept.append(output[f"{name}_features"])
                while sum(map(len, kept)) - len(kept[0]) >= self.num_features:
                    kept.popleft()
        if output.get("mean_target") is not None:
            self.target_sum = self.target_sum + output["mean_target"]
            self.entropy_sum = self.entropy_sum + output["target_entropy"]
            self.num_added += 1

    def statistics(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """
        Statistics over the features of all processes. This is a collective: all must call it after the same number of
        steps.

        Returns:
            Scalars. For `cls` and `patch` features `..._effective_rank` and `..._pair_cosine`;
            `prototypes_in_use`, the effective number of prototypes that share the mean target, in [1, K];
            `target_information`, what targets tell about their image, in nats: the entropy of the mean target minus
            the mean entropy of the targets, in [0, ln K], and 0 if every image has the same target.
        """
        statistics = {}
        for name, kept in self.features.items():
            if kept:
                share = -(-self.num_features // accelerator.num_processes)
                features = accelerator.gather(torch.cat(tuple(kept))[-share:])
                features = features[features.isfinite().all(dim=-1)]  # a broken image must not hide the others
                if len(features) > 1:
                    statistics[f"{name}_effective_rank"] = effective_rank(features)
                    statistics[f"{name}_pair_cosine"] = mean_pair_cosine(features)
        if self.num_added:
            mean_target, entropy = (
                accelerator.reduce(value / self.num_added, reduction="mean")
                for value in (self.target_sum, self.entropy_sum)
            )
            statistics["prototypes_in_use"] = entropy_of(mean_target).exp()
            statistics["target_information"] = entropy_of(mean_target) - entropy
        return statistics
