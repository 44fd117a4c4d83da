import pytest
import torch


@pytest.fixture
def spread():
    """Moves all weights of a model away from their initial values, so that none of them is without effect."""

    def spread(model: torch.nn.Module) -> torch.nn.Module:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model.eval()

    return spread
