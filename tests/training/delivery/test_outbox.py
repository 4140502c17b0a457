"""Logs that wait on disk: what a power cut damages costs no other run its log."""

import json
import logging
from pathlib import Path

import mlflow
import pytest

from tests.support.tiny_runs import planned
from training.data.corpus import Corpus
from training.delivery import outbox
from training.delivery.courier import Courier
from training.delivery.outbox import HEADER, JOURNAL, SENT, Outbox


@pytest.mark.parametrize("file", [JOURNAL, HEADER, SENT])
def test_a_damaged_outbox_is_moved_aside_and_the_others_are_delivered(
    corpus: Corpus, store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    assert store
    runs = [planned(corpus, name=name, seed=i, workspace=tmp_path) for i, name in enumerate("ab")]
    parent = mlflow.MlflowClient().create_run("0", run_name="sweep").info.run_id
    boxes = [Outbox.create(run, "0", parent_run_id=parent) for run in runs]
    for box in boxes:
        box.tags({"whole": "true"})
        box.close("FINISHED", loss=1.0)
    with (boxes[0].folder / file).open("ab") as damaged:
        damaged.write(b"\0" * 40 + b"\n" if file == JOURNAL else b"[]")
    with caplog.at_level(logging.WARNING, "training"):
        outbox.close_dead(tmp_path)
        waits = Courier(tmp_path).deliver()
    assert not waits.outboxes
    assert not outbox.waiting(tmp_path)
    names = {run.info.run_name for run in mlflow.search_runs(output_format="list")}
    if file == SENT:  # the run is found by its tag instead
        assert names == {"sweep", "a", "b"}
        return
    assert names == {"sweep", "b"}
    aside = tmp_path / "outbox.damaged" / boxes[0].name
    assert f"{boxes[0].folder} is damaged" in caplog.text
    assert f"moved to {aside}" in caplog.text
    first = (aside / JOURNAL).read_bytes().splitlines()[0]
    assert json.loads(first) == {"tags": {"whole": "true"}}
    assert not outbox.of_run(runs[0])
