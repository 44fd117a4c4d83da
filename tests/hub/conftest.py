import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.examples.conftest import images, recipe  # noqa: F401

from .fake_hub import FakeHub, serve_fake_hub


@pytest.fixture(scope="session")
def session_hub():
    with serve_fake_hub() as hub:
        yield hub


@pytest.fixture
def hub(session_hub) -> FakeHub:
    """Empty, and failing nothing."""
    for kept in (session_hub.repos, session_hub.failures, session_hub.requests):
        kept.clear()
    return session_hub


@pytest.fixture(scope="session")
def environment(session_hub, tmp_path_factory) -> dict[str, str]:
    """Of a user of the fake Hub, who is logged in and may write."""
    return {
        "HF_ENDPOINT": session_hub.url,
        "HF_TOKEN": "hf_writer",
        "HF_HOME": str(tmp_path_factory.mktemp("hf_home")),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="session")
def start_client(environment):
    """
    Start a process in that environment, which must be set before anything of Hugging Face is imported. The first
    argument of what comes back is a function of a test module, to be called there with the others.
    """
    pools = []

    def start(*, offline: bool) -> Callable:
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        pools.append(pool)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**environment, "HF_HUB_OFFLINE": str(int(offline))}.items():
                patch.setenv(name, value)
            pool.submit(Path).result()  # the process starts with its first task, and inherits the environment
        return lambda function, *args: pool.submit(function, *args).result()

    yield start
    for pool in pools:
        pool.shutdown()


@pytest.fixture(scope="session")
def client(start_client) -> Callable:
    return start_client(offline=False)


@pytest.fixture(scope="session")
def offline_client(start_client) -> Callable:
    """The same user, with the same cache, after the network is gone."""
    return start_client(offline=True)
