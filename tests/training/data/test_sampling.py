"""Batches by mixture: exact in expectation, a function of seed and step alone."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.strategies import mixtures
from tests.support.tiny_runs import CODE, DOMAINS, MATH, PER_STEP, TRAINING, planned
from training.data.corpus import Corpus, TokenFiles
from training.data.sampling import MixtureSampler, shuffled, validation_windows
from training.run import Phase, Run

LENGTH = 8


@pytest.fixture
def domains(tmp_path: Path) -> dict[str, TokenFiles]:
    """Domain j's tokens are 1000 j, 1000 j + 1, …: each says where it comes from."""
    made = {}
    for j, tokens in enumerate((400, 800, 160)):
        folder = tmp_path / str(j)
        folder.mkdir()
        train = (1000 * j + np.arange(tokens)).astype("uint16")
        train.tofile(folder / "train.bin")
        train[:100].tofile(folder / "validation.bin")
        made[f"d{j}"] = TokenFiles(str(folder), "uint16", tokens, 100, 2.0, 1, "")
    return made


def sampler(
    domains: dict[str, TokenFiles],
    shares: list[float],
    steps: int = 200,
    seed: int = 0,
    data_share: float = 1.0,
) -> MixtureSampler:
    mixture = dict(zip(domains, shares, strict=True))
    return MixtureSampler(domains, mixture, 16, LENGTH, steps, seed, data_share)


def test_every_step_deals_the_floor_or_the_ceiling_of_each_share(
    domains: dict[str, TokenFiles],
) -> None:
    shares = np.array([0.55, 0.4, 0.05])
    counts = sampler(domains, shares.tolist()).counts
    assert (counts.sum(axis=1) == 16).all()
    assert (np.abs(counts - 16 * shares) < 1 + 1e-9).all()
    assert counts.mean(axis=0) == pytest.approx(16 * shares, abs=0.1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # files that nobody changes
@given(shares=mixtures(3), seed=st.integers(0, 2**31))
def test_the_counts_of_every_mixture_are_as_near_as_whole_sequences_can_be(
    domains: dict[str, TokenFiles], shares: list[float], seed: int
) -> None:
    drawn = sampler(domains, shares, steps=50, seed=seed)
    counts = drawn.counts
    assert (counts.sum(axis=1) == 16).all()
    assert (np.abs(counts - 16 * np.array(shares)) < 1 + 1e-9).all()
    assert not counts[:, np.array(shares) == 0].any()
    assert (drawn.drawn(50) == counts.sum(axis=0)).all()
    assert drawn.planned(50) == pytest.approx(50 * 16 * np.array(shares))
    again = sampler(domains, shares, steps=50, seed=seed)
    for step in (0, 49):
        assert np.array_equal(again.batch(step), drawn.batch(step))
        assert np.array_equal(np.sort(drawn.domains(step)), drawn.batch(step)[:, 0] // 1000)


def test_a_domain_of_proportion_zero_is_never_drawn(domains: dict[str, TokenFiles]) -> None:
    counts = sampler(domains, [0.3, 0.0, 0.7]).counts
    assert (counts[:, 1] == 0).all()


def test_batches_are_windows_of_the_counted_domains(domains: dict[str, TokenFiles]) -> None:
    made = sampler(domains, [0.5, 0.3, 0.2])
    for step in (0, 7, 199):
        batch = made.batch(step)
        assert batch.shape == (16, LENGTH + 1)
        assert (np.diff(batch, axis=1) == 1).all()
        drawn = np.bincount(batch[:, 0] // 1000, minlength=3)
        assert np.array_equal(drawn, made.counts[step])


def test_a_step_is_the_same_whatever_came_before(domains: dict[str, TokenFiles]) -> None:
    shares = [0.5, 0.3, 0.2]
    straight = sampler(domains, shares)
    for step in range(50):
        straight.batch(step)
    assert np.array_equal(straight.batch(50), sampler(domains, shares).batch(50))
    assert not np.array_equal(straight.batch(50), sampler(domains, shares, seed=1).batch(50))


def test_an_epoch_sees_every_window_once(domains: dict[str, TokenFiles]) -> None:
    made = sampler(domains, [1.0, 0.0, 0.0], steps=6)
    windows = (400 - 1) // LENGTH
    starts = np.concatenate([made.batch(step)[:, 0] for step in range(6)])
    first = starts[:windows]
    assert len(set(first.tolist())) == windows
    assert made.epochs(6)[0] == pytest.approx(6 * 16 / windows)
    assert not np.array_equal(starts[windows : 2 * windows], first[: len(starts) - windows])


def test_processes_share_a_batch(domains: dict[str, TokenFiles]) -> None:
    made = sampler(domains, [0.5, 0.3, 0.2])
    parts = [made.batch(70, slice(start, start + 4)) for start in range(0, 16, 4)]
    assert np.array_equal(np.concatenate(parts), made.batch(70))
    assert np.array_equal(made.domains(70), made.batch(70)[:, 0] // 1000)


def test_a_run_of_a_part_repeats_the_same_text(domains: dict[str, TokenFiles]) -> None:
    def seen(seed: int, data_share: float) -> set[int]:
        made = sampler(domains, [1.0, 0.0, 0.0], steps=40, seed=seed, data_share=data_share)
        starts = np.concatenate([made.batch(step)[:, 0] for step in range(40)])
        count = int((400 - 1) // LENGTH * data_share)
        assert made.epochs(40)[0] == pytest.approx(640 / count)
        drawn = np.unique(starts, return_counts=True)[1]
        assert len(drawn) == count
        assert np.ptp(drawn) <= 1
        return set(starts.tolist())

    assert seen(0, 0.5) == seen(1, 0.5)
    assert seen(0, 0.25) < seen(0, 0.5)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000])
def test_a_shuffle_is_a_permutation(count: int) -> None:
    index = np.arange(count)
    orders = [shuffled(index, count, (seed, 1)) for seed in range(3)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert np.array_equal(shuffled(index[::2], count, (0, 1)), orders[0][::2])


def test_a_shuffle_prefers_no_place() -> None:
    places = np.zeros((7, 7))
    for seed in range(7000):
        places[np.arange(7), shuffled(np.arange(7), 7, (seed,))] += 1
    assert np.abs(places - 1000).max() < 150  # five standard deviations


def test_validation_windows_are_fixed_and_inside(domains: dict[str, TokenFiles]) -> None:
    windows = validation_windows(domains["d1"], 50, LENGTH)
    assert windows.shape == (7, LENGTH + 1)
    assert windows.min() >= 1000
    assert windows.max() < 1100
    assert np.array_equal(windows, validation_windows(domains["d1"], 50, LENGTH))


def of_run(corpus: Corpus, run: Run) -> MixtureSampler:
    training = run.training
    length, steps = training.sequence_length, training.steps
    return MixtureSampler(
        corpus.domains, run.mixture, training.batch_size, length, steps, run.seed, 1.0,
        run.phases[1:],
    )  # fmt: skip


def test_a_schedule_deals_each_phase_its_mixture(corpus: Corpus) -> None:
    training = TRAINING.model_copy(update={"steps": 900})
    later = [
        Phase(from_tokens=300 * PER_STEP, mixture=CODE),
        Phase(from_tokens=500 * PER_STEP, mixture=MATH),
    ]
    run = planned(corpus, training=training, later=later)
    drawn = of_run(corpus, run)
    for (start, mixture), end in zip(run.phases, (300, 500, 900), strict=True):
        shares = np.array([mixture[name] for name in DOMAINS])
        counts = drawn.counts[start:end]
        assert (np.abs(counts - training.batch_size * shares) < 1 + 1e-9).all()
        assert counts.mean(axis=0) == pytest.approx(training.batch_size * shares, abs=0.1)
    whole = training.batch_size * training.steps
    mean = [run.mean_mixture()[name] for name in DOMAINS]
    assert drawn.planned(900) == pytest.approx(whole * np.array(mean))
    assert np.abs(drawn.drawn(900) - drawn.planned(900)).max() < 40
    constant = planned(corpus, training=training)
    for step in (0, 299):
        assert (drawn.batch(step) == of_run(corpus, constant).batch(step)).all()
    assert (drawn.batch(300) != of_run(corpus, constant).batch(300)).any()
