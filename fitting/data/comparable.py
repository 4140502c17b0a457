"""Whether losses of runs can be compared: what they log of their training and validation."""

from collections.abc import Sequence

from mlflow.entities import Run

from training.record import keys
from training.record.errors import InputError

ALIKE = (  # params, beside the learning rate, on which the losses of a mixture and a scale depend
    "vocab_size",
    "validation_tokens",
    keys.TOKENS_PER_STEP,
    "sequence_length",
    "batch_size",
    "warmup_steps",
    "decay_steps",
    "rate_times_width",
    "weight_decay",
    "gradient_clipping",
    "precision",
    "optimizer",
    "data_share",
)
CONTEXT, VALIDATION = "mlflow.data.context", "validation"  # of the held-out tokens a run logs


def refuse_several_studies(runs: Sequence[Run], experiment_ids: Sequence[str]) -> None:
    """Losses of differently trained runs are not comparable; imported runs belong to no study."""
    found = sorted({run.data.tags[keys.STUDY] for run in runs if keys.STUDY in run.data.tags})
    if len(found) > 1:
        raise InputError(
            f"experiment {', '.join(experiment_ids)} holds proxy runs of different data or "
            f"training ({', '.join(found)}), whose losses are not comparable; choose with "
            f"runs=\"tags.{keys.STUDY} = '{found[-1]}'\", or name those that are comparable all "
            f"the same with reuse=\"tags.{keys.STUDY} = '{found[0]}'\""
        )


def one_unit(runs: Sequence[Run]) -> str:
    """The unit of the losses of all runs; InputError where they do not share one."""
    named: dict[str, list[str]] = {}
    for run in runs:
        unit = run.data.params.get(keys.UNIT, keys.NATS)
        named.setdefault(unit, []).append(run.info.run_name)
    if len(named) > 1:
        counts = ", ".join(f"{len(names)} in {u} ({names[0]}, …)" for u, names in named.items())
        other = next(unit for unit in named if unit != keys.NATS)
        raise InputError(
            f"the losses of these runs have several units, {counts}, and cannot be fitted "
            f"together; choose with runs=\"params.{keys.UNIT} = '{other}'\" or by experiment"
        )
    return next(iter(named))


def refuse_other_training(new: Sequence[Run], old: Sequence[Run]) -> None:
    """Raise InputError for an old run that logs another training or validation than the new ones.

    Only what both log is compared: an imported run tells little of its training.
    """
    known: dict[str, set[str]] = {}
    for run in new:
        for name, value in _training(run).items():
            known.setdefault(name, set()).add(value)
    for run in old:
        for name, value in _training(run).items():
            if name in known and value not in known[name]:
                raise InputError(
                    f"reuse: run {run.info.run_name!r} has the {name} {value}, the runs that it "
                    f"would join have {' or '.join(sorted(known[name]))}, so that their losses are "
                    "not comparable; train the new runs as the old ones were, or leave it out"
                )


def _training(run: Run) -> dict[str, str]:
    """What a run logs of all that its losses depend on beside mixture, size and length."""
    params = run.data.params
    found = {name: params[name] for name in ALIKE if name in params}
    if "learning_rate" in params:
        size = f"learning_rate of {float(params[keys.N_PARAMS]):,.0f} parameters"
        found[size] = params["learning_rate"]
    for given in run.inputs.dataset_inputs:
        if any((tag.key, tag.value) == (CONTEXT, VALIDATION) for tag in given.tags):
            found[f"digest of the dataset {given.dataset.name!r}"] = given.dataset.digest
    return found
