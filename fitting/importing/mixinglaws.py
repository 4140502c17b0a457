"""The evaluation logs published with arXiv 2403.16952 (github.com/yegcjs/mixinglaws) → runs.

A line is one observation: checkpoint path, data path and loss, separated by tabs. The checkpoint's
last two parts are `<size>_<set>_<id>-<r1>-<r2>-…/<step>`. Some sets leave out their name, or also
the size, which is then the log's name (`410M.txt`). The validation domain is the last part of the
data file's name, without its suffix, that is not `valid`: `Github` in
`pythia-pile.valid.Github.bin`, `python` in `starcoder.python.valid.bin`.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from fitting.importing import table_reader
from fitting.importing.table_reader import RUN, STEP, RunTable
from training.record import keys
from training.record.errors import InputError

# non-embedding parameters of the Pythia sizes that the paper trained
N_PARAMS = {
    "70M": 18_915_328,
    "160M": 85_056_000,
    "305M": 201_541_632,
    "410M": 302_311_424,
    "1B": 805_736_448,
    "2.8B": 2_517_652_480,
}
TOKENS_PER_STEP = 4096 * 256  # sequence length × sequences
LAST_FITTED = 900  # higher ids are check runs
FIELDS = 4  # the log's name and the three fields of a line
NUMBER = r"\d+(?:\.\d+)?(?:e-\d+)?"
CHECKPOINT = re.compile(
    rf"(?:.*/)?(?:(?P<size>[^/_]+)_(?:[^/]+_)?)?(?P<id>\d+)-(?P<shares>{NUMBER}(?:-{NUMBER})*)"
    r"/(?P<step>\d+)/?"
)


@dataclass(frozen=True)
class BaseLoss:
    """The loss of the base model that the runs continue, on one validation domain."""

    place: str
    loss: float


@dataclass(frozen=True)
class Observation:
    """One line of a log."""

    place: str
    size: str
    mixture_id: str
    shares: tuple[float, ...]  # in the order of the checkpoint's name
    step: int
    val_domain: str
    loss: float

    @property
    def run(self) -> str:
        """The run's name."""
        return f"{self.size}-{self.mixture_id}"

    @property
    def check(self) -> bool:
        """Whether the run only checks predictions and is never fitted."""
        return int(self.mixture_id) > LAST_FITTED


def logs(
    source: str, domains: Sequence[str], n_params: Mapping[str, float], base: str = ""
) -> RunTable:
    """The runs of log files: comma-separated paths, or a folder whose logs are all read.

    `domains` names the proportions in order; `n_params`, size → non-embedding parameters, adds to
    the sizes of the paper. Lines may repeat. Lines of checkpoints that are not mixture runs (models
    before continued training) are left out and noted, except those of `base`, which become every
    run's evaluation at step 0. Raises InputError.
    """
    for name in domains:
        if fault := keys.name_fault(name):
            raise InputError(f"domains: {table_reader.shown(name)}: {fault}")
    observations: dict[tuple[str, int, str], Observation] = {}
    not_mixtures: Counter[str] = Counter()  # checkpoint → its lines
    base_losses: dict[str, BaseLoss] = {}  # by validation domain
    lines, notes = _lines(source)
    for place, (log, checkpoint, data, loss) in lines.items():
        match = CHECKPOINT.fullmatch(checkpoint)
        if match is None:
            name = checkpoint.rstrip("/").rsplit("/", 1)[-1]
            not_mixtures[name] += 1
            if name == base:
                at_base = BaseLoss(place, _loss(place, loss))
                first = base_losses.setdefault(_val_domain(place, data), at_base)
                _refuse_contradiction(at_base, first)
            continue
        new = _observation(place, log, match, data, loss)
        first_seen = observations.setdefault((new.run, new.step, new.val_domain), new)
        _refuse_contradiction(new, first_seen)
    if not observations:
        raise InputError(f"source: {source} holds no observation of a mixture run")
    if base and not base_losses:
        known = ", ".join(not_mixtures) or "none"
        raise InputError(
            f"base: no line of {base!r}; checkpoints that are not mixture runs: {known}"
        )
    notes += [
        f"left out {n} lines of {name}, which is not a mixture run; if the runs continue it, give "
        f"base={name}"
        for name, n in not_mixtures.items()
        if name != base
    ]
    by_run = {observation.run: observation for observation in observations.values()}
    at_start = [
        replace(run, place=at_base.place, step=0, val_domain=val_domain, loss=at_base.loss)
        for run in by_run.values()
        for val_domain, at_base in base_losses.items()
    ]
    for start in at_start:
        same = observations.get((start.run, 0, start.val_domain), start)
        _refuse_contradiction(start, same)
    table = _table([*at_start, *observations.values()], domains, {**N_PARAMS, **n_params})
    check_runs = [name for name, observation in by_run.items() if observation.check]
    table, rounding = table_reader.normalised(table_reader.checked(table), check_runs)
    runs = (_with_params(run, by_run[run.name]) for run in table_reader.runs(table))
    return RunTable(tuple(runs), (*notes, *rounding))


def _refuse_contradiction(new: BaseLoss | Observation, old: BaseLoss | Observation) -> None:
    """Raise InputError if two lines on the same checkpoint and data have different losses."""
    if old.loss != new.loss:
        raise InputError(
            f"{new.place}: loss {new.loss}, but {old.loss} in {old.place} for the same checkpoint "
            "and data; remove the wrong line"
        )


def _lines(source: str) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Place → log's name, checkpoint, data and loss of every line; and notes on skipped files."""
    folder = Path(source)
    in_folder = folder.is_dir()
    paths = sorted(folder.iterdir()) if in_folder else [Path(p.strip()) for p in source.split(",")]
    lines: dict[str, tuple[str, ...]] = {}
    notes = []
    for path in (path for path in paths if not (in_folder and path.is_dir())):
        try:
            text = path.read_text(errors="replace")
        except OSError as error:
            raise InputError(f"source: {path.absolute()} cannot be read: {error}") from error
        fields_at = {
            f"{path}, line {i}": (path.stem, *line.split("\t"))
            for i, line in enumerate(text.splitlines(), 1)
            if line.strip()
        }
        if "\0" in text or all(len(fields) != FIELDS for fields in fields_at.values()):
            form = "tab-separated checkpoint, data and loss"
            if not in_folder:
                raise InputError(f"source: {path} has no line of {form}")
            notes.append(f"skipped {path.name}: no line of {form}")
            continue
        for place, fields in fields_at.items():
            if len(fields) != FIELDS:
                raise InputError(f"{place}: must be checkpoint, data and loss, separated by tabs")
        lines |= fields_at
    return lines, notes


def _observation(place: str, log: str, match: "re.Match[str]", data: str, loss: str) -> Observation:
    return Observation(
        place=place,
        size=match["size"] or log,
        mixture_id=match["id"],
        shares=tuple(float(share) for share in re.findall(NUMBER, match["shares"])),
        step=int(match["step"]),
        val_domain=_val_domain(place, data),
        loss=_loss(place, loss),
    )


def _val_domain(place: str, data: str) -> str:
    parts = [part for part in data.rsplit("/", 1)[-1].split(".")[:-1] if part != "valid"]
    if not parts:
        raise InputError(f"{place}: {data!r} does not name a validation domain")
    if fault := keys.name_fault(parts[-1]):
        raise InputError(f"{place}: validation domain {table_reader.shown(parts[-1])}: {fault}")
    return parts[-1]


def _loss(place: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{place}: loss {text!r} must be a number >= 0")
    return value


def _table(
    observations: Sequence[Observation], domains: Sequence[str], sizes: Mapping[str, float]
) -> pd.DataFrame:
    """The tidy table, indexed by the place of each evaluation's first line."""
    rows: dict[tuple[str, int], dict[str, object]] = {}
    for o in observations:
        if len(o.shares) != len(domains) or len(set(domains)) != len(domains):
            raise InputError(
                f"domains: give {len(o.shares)} names, comma-separated, in the order of the "
                f"proportions {', '.join(f'{share:g}' for share in o.shares)} ({o.place}); "
                f"given: {', '.join(domains) or 'none'}"
            )
        if o.size not in sizes:
            raise InputError(
                f"n_params: {o.size} ({o.place}) is not a known size. Give {o.size}=…; known: "
                f"{', '.join(sizes)}"
            )
        row = {
            "place": o.place,
            RUN: o.run,
            keys.N_PARAMS: sizes[o.size],
            keys.TOKENS: o.step * TOKENS_PER_STEP,
            STEP: o.step,
            **keys.with_prefix(keys.MIXTURE, dict(zip(domains, o.shares, strict=True))),
        }
        rows.setdefault((o.run, o.step), row)[keys.VAL_LOSS + o.val_domain] = o.loss
    return pd.DataFrame(list(rows.values())).set_index("place")


def _with_params(
    run: table_reader.ImportedRun, observation: Observation
) -> table_reader.ImportedRun:
    """The run with the size and the mixture id that its checkpoint's name holds."""
    params = {keys.SIZE: observation.size, keys.MIXTURE_ID: observation.mixture_id}
    return replace(run, params=params, check=observation.check)
