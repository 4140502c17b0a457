"""The table that the fits use, as arrays; each row is one evaluation of a run."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from training.record import keys
from training.record.errors import InputError
from training.record.mixtures import MIXTURE_TOLERANCE, SAME_DECIMALS

Array = np.ndarray

LARGEST = 1e100  # whose square can be computed
EVIDENCE = 10.0  # degrees of freedom for the same noise in all losses
WRITTEN = 6e-5  # by which a proportion may differ where a mixture is written with four decimals


@dataclass(frozen=True)
class Observations:
    """Validation losses of proxy runs, joined by run and domain name, never by position."""

    domains: tuple[str, ...]  # training domains, M
    val_domains: tuple[str, ...]  # V
    runs: tuple[str, ...]
    mixtures: Array  # distinct ones, (m, M)
    mixture_of: Array  # index into mixtures of each row, (rows,)
    run_of: Array  # index into runs of each row, (rows,)
    n_params: Array  # non-embedding parameters, (rows,)
    tokens: Array  # (rows,)
    losses: Array  # nats per token, (rows, V)
    noise: "Noise | None" = None  # between seeds, of all runs; None if no run repeats another
    unique: Array | None = None  # different tokens of each domain that a run may see, (rows, M)

    @classmethod
    def from_tidy(cls, table: pd.DataFrame) -> Self:
        """From the columns run, n_params, tokens, mixture/<domain>…, val_loss/<domain>… of a table.

        Raises InputError for missing columns, a value that is missing or infinite, two rows
        of a run at the same tokens, and a mixture that does not sum to one.
        """
        for column in ("run", keys.N_PARAMS, keys.TOKENS):
            if column not in table:
                raise InputError(f"run table: no column {column!r}")
        domains = domain_names(table, keys.MIXTURE)
        val_domains = domain_names(table, keys.VAL_LOSS)
        columns = [keys.MIXTURE + d for d in domains] + [keys.VAL_LOSS + d for d in val_domains]
        values = table[[keys.N_PARAMS, keys.TOKENS, *columns]]
        if (bad := ~(np.abs(values.to_numpy(float)) < LARGEST)).any():
            row, column = np.argwhere(bad)[0]
            raise InputError(
                f"run table: run {table['run'].iloc[row]!r} has no finite value of "
                f"{values.columns[column]!r} at row {row}; each needs a number below {LARGEST:g}"
            )
        if (again := table.duplicated(["run", keys.TOKENS])).any():
            row = int(np.argmax(again))
            raise InputError(
                f"run table: run {table['run'].iloc[row]!r} has two rows at "
                f"{table[keys.TOKENS].iloc[row]:,.0f} tokens, the second at row {row}; keep one"
            )
        raw = table[[keys.MIXTURE + d for d in domains]].to_numpy(float)
        off = np.abs(raw.sum(axis=1) - 1) > MIXTURE_TOLERANCE
        if off.any() or (raw < 0).any():
            row = int(np.argmax(off | (raw < 0).any(axis=1)))
            raise InputError(
                f"run table: run {table['run'].iloc[row]!r}: proportions {raw[row].tolist()} must "
                f"be >= 0 and sum to 1 within {MIXTURE_TOLERANCE:g}"
            )
        proportions = raw / raw.sum(axis=1, keepdims=True)
        mixture_of = _same(proportions)
        _, first = np.unique(mixture_of, return_index=True)
        runs, run_of = np.unique(table["run"].to_numpy(str), return_inverse=True)
        observations = cls(
            domains,
            val_domains,
            tuple(runs.tolist()),
            proportions[first],
            mixture_of,
            run_of,
            table[keys.N_PARAMS].to_numpy(float),
            table[keys.TOKENS].to_numpy(float),
            table[[keys.VAL_LOSS + d for d in val_domains]].to_numpy(float),
            unique=_unique(table, domains),
        )
        return replace(observations, noise=Noise.of(observations))

    def rows(self, keep: Array) -> Self:
        """The rows where `keep`, (rows,) bool; mixtures and runs without rows are dropped."""
        mixtures, mixture_of = np.unique(self.mixture_of[keep], return_inverse=True)
        runs, run_of = np.unique(self.run_of[keep], return_inverse=True)
        return replace(
            self,
            runs=tuple(self.runs[i] for i in runs),
            mixtures=self.mixtures[mixtures],
            mixture_of=mixture_of,
            run_of=run_of,
            n_params=self.n_params[keep],
            tokens=self.tokens[keep],
            losses=self.losses[keep],
            unique=None if self.unique is None else self.unique[keep],
        )

    def last(self) -> Array:
        """Whether each row is its run's last evaluation, (rows,) bool."""
        ends = np.full(len(self.runs), -np.inf)
        np.maximum.at(ends, self.run_of, self.tokens)
        return self.tokens == ends[self.run_of]

    def proportions(self) -> Array:
        """The mixture of each row, (rows, M)."""
        return self.mixtures[self.mixture_of]


@dataclass(frozen=True)
class Noise:
    """What runs of one mixture, size and length that differ by their seed alone differ by."""

    covariance: Array  # of their losses, (V, V)
    freedom: int  # degrees of freedom: runs less the mixtures and scales they repeat

    @property
    def deviations(self) -> Array:
        """Standard deviation of each loss, (V,): each variance shrunk towards their mean as by
        EVIDENCE more degrees of freedom, for few seeds tell little."""
        own = np.diag(self.covariance)
        shrunk = (self.freedom * own + EVIDENCE * own.mean()) / (self.freedom + EVIDENCE)
        return np.sqrt(shrunk)

    @classmethod
    def of(cls, observations: Observations) -> "Noise | None":
        """That of each run's last evaluation; None if no run repeats another."""
        last = observations.rows(observations.last())
        scale = np.stack([last.mixture_of, last.n_params, last.tokens])
        if last.unique is not None:
            scale = np.vstack([scale, last.unique.T])
        _, group, counts = np.unique(scale, axis=1, return_inverse=True, return_counts=True)
        freedom = int((counts - 1).sum())
        if not freedom:
            return None
        sums = np.zeros((len(counts), last.losses.shape[1]))
        np.add.at(sums, group, last.losses)
        away = last.losses - (sums / counts[:, None])[group]
        return cls(away.T @ away / freedom, freedom)


def _unique(table: pd.DataFrame, domains: tuple[str, ...]) -> Array | None:
    """The columns unique_tokens/<domain>, (rows, M), infinite where there is none or no value; None
    if no domain has one."""
    columns = [keys.UNIQUE_TOKENS + d for d in domains]
    if not set(columns) & set(table):
        return None
    values = table.reindex(columns=columns).to_numpy(float)
    return np.where(np.isnan(values), np.inf, values)


def _same(proportions: Array) -> Array:
    """A number for the mixture of each row of (rows, M), (rows,): the same for rows that differ by
    no more than their rounding."""
    distinct, of_distinct = np.unique(proportions.round(SAME_DECIMALS), axis=0, return_inverse=True)
    pairs = cKDTree(distinct).query_pairs(WRITTEN, p=np.inf, output_type="ndarray")
    links = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(distinct), len(distinct)))
    _, label = connected_components(links, directed=False)
    return np.asarray(label[of_distinct.ravel()])


def domain_names(table: pd.DataFrame, prefix: str) -> tuple[str, ...]:
    """The domains that the columns with a prefix name; raises InputError where there are none."""
    names = tuple(str(c).removeprefix(prefix) for c in table if str(c).startswith(prefix))
    if not names:
        raise InputError(f"run table: no column {prefix}<domain>")
    return names
