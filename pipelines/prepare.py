"""`prepare`: tokenise a study's domains; does nothing when they are up to date."""

import mlflow

from pipelines import entry
from pipelines.command import preflight
from pipelines.study import load as studies
from pipelines.study.study import Study
from training.data import corpus as corpora
from training.data.corpus import Corpus
from training.record import keys, layout

NAME = 24  # cells of a domain's name


def prepare(plan: Study) -> Corpus:
    """The study's corpus, tokenised if it is not yet; reports the tokens of each domain."""
    corpus = corpora.prepare(
        plan.domains,
        plan.tokenizer,
        plan.validation,
        plan.training.sequence_length,
        plan.workspace,
    )
    default = plan.default(corpus)
    names = layout.short(list(corpus.domains), NAME)
    width = max(16, *(layout.cells(name) + 1 for name in names.values()))
    print(
        f"{'domain':<{width}}{'train tokens':>14}{'held out':>12}{'bytes/token':>13}{'default':>9}"
    )
    for name, files in corpus.domains.items():
        print(
            layout.padded(names[name], width)
            + f"{files.train_tokens:>14,}{files.validation_tokens:>12,}"
            f"{files.bytes_per_token:>13.2f}{default[name]:>9.3f}"
            + (f"   {files.skipped:,} rows left out" if files.skipped else "")
        )
    return corpus


def main(study: str) -> None:
    plan = studies.load(study)
    preflight.preparing(plan)
    corpus = prepare(plan)
    mlflow.log_params(
        {
            "vocab_size": corpus.vocab_size,
            "corpus_digest": corpus.digest,
            **{f"train_tokens/{n}": f.train_tokens for n, f in corpus.domains.items()},
            **{f"validation_tokens/{n}": f.validation_tokens for n, f in corpus.domains.items()},
            **{f"skipped/{n}": f.skipped for n, f in corpus.domains.items() if f.skipped},
        }
    )


if __name__ == "__main__":
    entry.main(keys.PREPARE, main, entry.arguments(__doc__, study="quickstart"))
