from tests.evaluation.conftest import model, processor  # noqa: F401
