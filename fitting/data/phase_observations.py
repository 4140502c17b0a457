"""The table that a schedule's law is fitted to, as arrays.

A trunk is a run whose state at the end of a phase several runs of the next phase continue.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

from fitting.data.observations import domain_names
from training.record import keys
from training.record.errors import InputError
from training.record.mixtures import SAME_DECIMALS

Array = np.ndarray

MIN_MIXTURES = 4
PHASE, TRUNK, LABEL = "phase", "trunk", "label"


@dataclass(frozen=True)
class PhaseRuns:
    """The runs of every phase: each continues one of a few states on one of the same mixtures."""

    domains: tuple[str, ...]  # training domains, M
    val_domains: tuple[str, ...]  # V
    tokens: Array  # at the end of each phase, (K,)
    mixtures: Array  # distinct mixtures, (m, M)
    phase_of: Array  # from 0, (runs,)
    mixture_of: Array  # index into mixtures, (runs,)
    trunk: Array  # name of the trunk that each run continues, (runs,)
    before: Array  # losses at the phase's start, nats per token, (runs, V); NaN in phase 1
    losses: Array  # at the phase's end, (runs, V)
    trunk_mixtures: dict[str, int]  # trunk's name → index into mixtures

    @classmethod
    def from_table(cls, table: pd.DataFrame, tokens: Array) -> Self:
        """From the columns phase (from 1), trunk, label, mixture/<domain>…, before/<domain>… and
        val_loss/<domain>…; `label` names a row's mixture, and a trunk is named after its mixture.

        Raises InputError for too few mixtures, and for a later phase whose starting states do not
        differ.
        """
        domains, val_domains = domain_names(table, keys.MIXTURE), domain_names(table, keys.VAL_LOSS)
        raw = table[[keys.MIXTURE + d for d in domains]].to_numpy(float)
        mixtures, mixture_of = np.unique(raw.round(SAME_DECIMALS), axis=0, return_inverse=True)
        if len(mixtures) < MIN_MIXTURES:
            raise InputError(
                f"{len(mixtures)} mixtures were tried in each phase; a phase's law needs at least "
                f"{MIN_MIXTURES}"
            )
        labels = dict(zip(table[LABEL], mixture_of.ravel().tolist(), strict=True))
        runs = cls(
            domains=domains,
            val_domains=val_domains,
            tokens=tokens,
            mixtures=mixtures / mixtures.sum(axis=1, keepdims=True),
            phase_of=table[PHASE].to_numpy(int) - 1,
            mixture_of=mixture_of.ravel(),
            trunk=table[TRUNK].to_numpy(str),
            before=table[[keys.BEFORE + d for d in val_domains]].to_numpy(float),
            losses=table[[keys.VAL_LOSS + d for d in val_domains]].to_numpy(float),
            trunk_mixtures={t: labels[t] for t in table.loc[table[PHASE] > 1, TRUNK].unique()},
        )
        for k in range(1, len(tokens)):
            in_phase = runs.phase_of == k
            states = np.unique(runs.before[in_phase], axis=0, return_inverse=True)[1].ravel()
            pairs = np.unique(np.stack([runs.mixture_of[in_phase], states]), axis=1)
            if np.bincount(pairs[0], minlength=len(mixtures)).min() < 2:
                raise InputError(
                    f"phase {k + 1} does not continue two different states on every mixture, so "
                    "the retention of a state cannot be estimated; continue two or more "
                    "(phases.trunks)"
                )
        return runs

    def schedules(self) -> Array:
        """The mixtures of all phases for each run of the last phase, (runs of that phase, K, M)."""
        last = self.phase_of == len(self.tokens) - 1
        trunks = [self.trunk_mixtures[name] for name in self.trunk[last]]
        before = np.repeat(self.mixtures[trunks][:, None], len(self.tokens) - 1, axis=1)
        return np.concatenate([before, self.mixtures[self.mixture_of[last]][:, None]], axis=1)
