"""Fixtures of the tests that train."""

import pytest

from tests.support.tiny_runs import random_corpus
from training.data.corpus import Corpus
from training.engine import devices
from training.engine import trainer as trainers


@pytest.fixture(scope="module")
def cpu() -> None:
    """This process trains on one CPU thread, silently, as the only one of its group."""
    devices.use_device(0, 1)
    trainers.silence_libraries()
    trainers.connect()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three domains of random tokens."""
    return random_corpus(tmp_path_factory.mktemp("corpus"))
