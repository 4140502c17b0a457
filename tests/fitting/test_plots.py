"""The figures of a fit."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pandas as pd

from fitting import plots
from fitting.data.observations import Observations


class Straight:
    """A law: each domain's loss falls with its own proportion, and with size."""

    def predict(self, mixtures: Any, n_params: Any, tokens: Any) -> Any:  # noqa: ARG002
        return 3 - mixtures[:, :2] + 10 / n_params[:, None]


def observations(domains: tuple[str, ...]) -> Observations:
    """Three mixtures at two sizes and two lengths, on the law."""
    rows = []
    for share in (0.2, 0.5, 0.8):
        for size in (10.0, 20.0):
            for tokens in (100.0, 200.0):
                mixture = np.array([share, 1 - share, *np.zeros(len(domains) - 2)])
                loss = Straight().predict(mixture[None], np.array([size]), tokens)[0]
                rows.append(
                    {"run": f"{share}-{size}", "n_params": size, "tokens": tokens}
                    | {f"mixture/{d}": r for d, r in zip(domains, mixture, strict=True)}
                    | {f"val_loss/{d}": x for d, x in zip(domains[:2], loss, strict=True)}
                )
    return Observations.from_tidy(pd.DataFrame(rows))


def test_two_domains_are_drawn_over_the_first_ones_proportion() -> None:
    law, weights = cast(Any, Straight()), np.array([0.25, 0.75])
    figure = plots.loss_against_proportion(observations(("a", "b")), law, weights)
    assert figure is not None
    panels: dict[str, Any] = {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}
    assert list(panels) == ["objective", "a", "b"]
    expected: dict[str, Callable[[Any], Any]] = {
        "a": lambda x: 3.5 - x,
        "b": lambda x: 2.5 + x,
        "objective": lambda x: 2.75 + x / 2,
    }
    for name, loss in expected.items():
        points = np.asarray(panels[name].collections[0].get_offsets())  # at the largest size
        assert sorted(points[:, 0]) == [0.2, 0.5, 0.8]
        np.testing.assert_allclose(points[:, 1], loss(points[:, 0]))
        x, y = panels[name].lines[0].get_data()
        assert (x.min(), x.max()) == (0.2, 0.8)
        np.testing.assert_allclose(y, loss(x))


def test_three_domains_have_no_such_figure() -> None:
    law = cast(Any, Straight())
    assert plots.loss_against_proportion(observations(("a", "b", "c")), law, np.ones(2) / 2) is None
