"""Refuse runs whose losses are not comparable, by what they log about training and validation."""

from collections.abc import Sequence

from mlflow.entities import Run

from training.record import keys
from training.record.errors import InputError

COMPARED = (  # params, besides the learning rate, that change the losses of a mixture at a scale
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
CONTEXT, VALIDATION = "mlflow.data.context", "validation"  # tag of a run's held-out datasets


def refuse_several_studies(runs: Sequence[Run], experiment_ids: Sequence[str]) -> None:
    """Raise InputError for runs of more than one study; imported runs belong to none."""
    studies = sorted({run.data.tags[keys.STUDY] for run in runs if keys.STUDY in run.data.tags})
    if len(studies) > 1:
        raise InputError(
            f"experiment {', '.join(experiment_ids)} holds proxy runs of different data or "
            f"training ({', '.join(studies)}), whose losses are not comparable; choose with "
            f"runs=\"tags.{keys.STUDY} = '{studies[-1]}'\", or name those that are comparable "
            f"anyway with reuse=\"tags.{keys.STUDY} = '{studies[0]}'\""
        )


def one_unit(runs: Sequence[Run]) -> str:
    """The unit of the losses of all runs; raises InputError where the runs have several."""
    run_names: dict[str, list[str]] = {}  # by unit
    for run in runs:
        unit = run.data.params.get(keys.UNIT, keys.NATS)
        run_names.setdefault(unit, []).append(run.info.run_name)
    if len(run_names) > 1:
        counts = ", ".join(f"{len(names)} in {u} ({names[0]}, …)" for u, names in run_names.items())
        imported = next(unit for unit in run_names if unit != keys.NATS)
        raise InputError(
            f"the losses of these runs have several units, {counts}, and cannot be fitted "
            f"together; choose with runs=\"params.{keys.UNIT} = '{imported}'\" or by experiment"
        )
    return next(iter(run_names))


def refuse_different_training(new: Sequence[Run], old: Sequence[Run]) -> None:
    """Raise InputError for an old run whose training or validation differs from the new runs'.

    Only what both log is compared: an imported run logs little about its training.
    """
    new_values: dict[str, set[str]] = {}
    for run in new:
        for name, value in _training(run).items():
            new_values.setdefault(name, set()).add(value)
    for run in old:
        for name, value in _training(run).items():
            if name in new_values and value not in new_values[name]:
                raise InputError(
                    f"reuse: run {run.info.run_name!r} has the {name} {value}; the new runs have "
                    f"{' or '.join(sorted(new_values[name]))}, so their losses are not comparable; "
                    "train the new runs like the old ones, or leave this run out"
                )


def _training(run: Run) -> dict[str, str]:
    """What a run logs of the settings, besides mixture, size and length, that change its losses."""
    params = run.data.params
    settings = {name: params[name] for name in COMPARED if name in params}
    if "learning_rate" in params:
        name = f"learning_rate of {float(params[keys.N_PARAMS]):,.0f} parameters"
        settings[name] = params["learning_rate"]
    for dataset_input in run.inputs.dataset_inputs:
        if any((tag.key, tag.value) == (CONTEXT, VALIDATION) for tag in dataset_input.tags):
            dataset = dataset_input.dataset
            settings[f"digest of the dataset {dataset.name!r}"] = dataset.digest
    return settings
