"""`prepare`: tokenise a study's text; do nothing when that is up to date."""

from dataclasses import dataclass

import mlflow

from pipelines.command import table
from pipelines.runs import preflight
from pipelines.study import load as studies
from pipelines.study.prepared import Prepared
from pipelines.study.study import Study
from training.data import corpus as corpora
from training.data import tasks as task_files
from training.record import layout

NAME = 24  # width of a domain's name, in terminal cells


@dataclass(frozen=True)
class Parameters:
    study: str = table.study()


def prepare(study: Study) -> Prepared:
    """Tokenise the study's text unless that is done, and print the tokens of each domain."""
    corpus = corpora.prepare(
        study.domains,
        study.tokenizer,
        study.validation,
        study.training.sequence_length,
        study.workspace,
    )
    prepared = Prepared(study, corpus)
    default = prepared.default
    names = layout.short(corpus.evaluated, NAME)
    width = max(16, *(layout.cells(name) + 1 for name in names.values()))
    print(
        f"{'domain':<{width}}{'train tokens':>14}{'held out':>12}{'bytes/token':>13}{'default':>9}"
    )
    for name, files in corpus.texts.items():
        train, share = "–", "–"  # nothing trains on a set
        if name in corpus.domains:
            train, share = f"{files.train_tokens:,}", f"{default[name]:.3f}"
        print(
            layout.padded(names[name], width)
            + f"{train:>14}{files.validation_tokens:>12,}{files.bytes_per_token:>13.2f}{share:>9}"
            + (f"   {files.skipped:,} rows left out" if files.skipped else "")
        )
    _print_tasks(prepared, names, width)
    return prepared


def _print_tasks(prepared: Prepared, names: dict[str, str], width: int) -> None:
    study, tasks = prepared.study, prepared.corpus.tasks
    if not tasks:
        return
    length = study.training.sequence_length
    print(f"{'task':<{width}}{'questions':>14}{'evaluated':>12}{'bytes/token':>13}{'chance':>9}")
    for name, task in tasks.items():
        answers = task_files.evaluated(task, study.validation.tokens, length)
        chance = "–" if task.chance is None else f"{task.chance:.3f}"
        print(
            layout.padded(names[name], width)
            + f"{task.questions:>14,}{answers.questions:>12,}"
            + f"{answers.bytes_per_token:>13.2f}{chance:>9}"
            + (f"   {task.skipped:,} rows left out" if task.skipped else "")
        )
        if cut := task.cut(length):
            print(
                f"  {layout.count(cut, 'question')} of {names[name]} do not fit into "
                f"training.sequence_length ({length}): the beginnings of prompts are cut off"
            )


def log(prepared: Prepared) -> None:
    """Write what the text holds to the active run."""
    corpus, length = prepared.corpus, prepared.study.training.sequence_length
    cut = {name: task.cut(length) for name, task in corpus.tasks.items()}
    skipped = {name: files.skipped for name, files in corpus.texts.items()}
    skipped |= {name: task.skipped for name, task in corpus.tasks.items()}
    mlflow.log_params(
        {
            "vocab_size": corpus.vocab_size,
            "corpus_digest": corpus.digest,
            **{f"train_tokens/{n}": f.train_tokens for n, f in corpus.domains.items()},
            **{f"validation_tokens/{n}": f.validation_tokens for n, f in corpus.texts.items()},
            **{f"questions_prepared/{n}": task.questions for n, task in corpus.tasks.items()},
            **{f"cut_prompts/{n}": count for n, count in cut.items() if count},
            **{f"skipped/{n}": count for n, count in skipped.items() if count},
        }
    )
    if leaks := {name: files.leaks for name, files in corpus.domains.items() if files.leaks}:
        mlflow.log_dict(leaks, "leaks.json")


def main(parameters: Parameters, _: mlflow.ActiveRun) -> None:
    study = studies.load(parameters.study)
    preflight.preparing(study)
    log(prepare(study))
