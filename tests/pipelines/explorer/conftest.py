"""A registered predictor to explore."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from optimization.domain import predictor as predictors
from optimization.domain.predictor import Predictor
from tests.support import synthetic
from tests.support.logged_runs import fit_table, log_runs
from tests.support.stores import empty_store
from training.record import keys

DEFAULT = {"web": 0.7, "code": 0.2, "papers": 0.1}


@dataclass(frozen=True)
class Store:
    uri: str
    model: str


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with the predictor of noisy runs of a known law, whose default mixture is known."""
    with empty_store(tmp_path_factory.mktemp("explore")) as uri:
        table = synthetic.table(synthetic.joint_law(), noise=0.002)
        told = keys.with_prefix(keys.DEFAULT_MIXTURE, DEFAULT)
        parent = {key: str(value) for key, value in told.items()}
        done = fit_table(table, log_runs(table, parent), target=dict(synthetic.TARGET))
        yield Store(uri, done.registered.uri)


@pytest.fixture(scope="module")
def predictor(registered: Store) -> Predictor:
    return predictors.load(registered.model)
