"""The world that runs are started in."""

import multiprocessing.forkserver
from pathlib import Path

import harness
import pytest


@pytest.fixture(scope="session")
def world(tiny_model, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        environment.setenv("TOKENIZERS_PARALLELISM", "false")
        multiprocessing.forkserver.ensure_running()  # it, and all that it forks, keep these; tests of other files do not
    return harness.make_world(tmp_path_factory.mktemp("world"), tiny_model)
