"""Run by each process of a multi-process test: trains runs of a file, writes what was measured."""

import dataclasses
import json
import os
import sys
from pathlib import Path

from training.data import corpus as corpora
from training.engine import devices
from training.engine import trainer as trainers
from training.run import Run


def main(plan: Path) -> None:
    devices.use_device(0, 1)
    trainers.silence_libraries()
    runs = [Run.model_validate(run) for run in json.loads(plan.read_text())]
    found = []
    for run in runs:
        trainer = trainers.Trainer(run, corpora.load(run.corpus))
        found.append([(r.step, r.evaluation) for r in trainer.reports() if r.evaluation])
        trainer.close()
    if os.environ["RANK"] == "0":
        lines = [
            [(step, list(dataclasses.asdict(evaluation).values())) for step, evaluation in run]
            for run in found
        ]
        plan.with_suffix(".found").write_text(json.dumps(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
