"""`evaluate` on a model that `train` saved: its scores are those of the log-likelihoods by hand."""

import math
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import transformers

from pipelines import evaluate
from tests.support.commands import call, run_entry
from tests.support.quizzes import questions, written_task, written_text
from tests.support.studies import WriteStudy
from training.record import keys


def log_likelihood(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """Of an answer after a prompt, nats."""
    before = tokenizer(prompt)["input_ids"] or [tokenizer.eos_token_id]
    ids = torch.tensor([*before, *tokenizer(answer)["input_ids"]])
    with torch.no_grad():
        logs = model(ids[None, :-1]).logits[0].log_softmax(-1)
    return float(logs[range(len(ids) - 1), ids[1:]][len(before) - 1 :].sum())


@pytest.mark.slow
def test_the_scores_stand_on_the_models_run(
    store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    tmp_path: Path,
    no_hub: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert store
    assert no_hub is None
    done = run_entry("train", "--study", write_study(miniature), "--size=tiny", "--save-model=true")
    assert done.returncode == 0, done.stderr[-3000:]
    (trained,) = mlflow.search_runs(["0"], "tags.stage = 'proxy'", output_format="list")
    quiz, text = written_task(tmp_path, "quiz"), written_text(tmp_path, "text & more")
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    uri = f"runs:/{trained.info.run_id}"
    done = run_entry("evaluate", "--model", uri, "--benchmarks", f"{quiz},{text}", env=env)
    assert done.returncode == 0, done.stderr[-3000:]

    folder = str(tmp_path / "saved")
    mlflow.artifacts.download_artifacts(f"{uri}/model", dst_path=folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"{folder}/model")
    right, nats = [], []
    for question in questions():
        logs = [
            log_likelihood(model, tokenizer, question["question"], f" {choice}")
            for choice in question["choices"]
        ]
        right.append(int(np.argmax(logs)) == question["answer"])
        nats.append(-log_likelihood(model, tokenizer, "", question["question"]))
    size = sum(len(question["question"].encode()) for question in questions())
    expected = {
        "benchmark/quiz/acc": np.mean(right),
        "benchmark/quiz/acc_stderr": np.std(right, ddof=1) / math.sqrt(len(right)),
        "benchmark/text _ more/bits_per_byte": sum(nats) / size / math.log(2),
    }
    (command,) = mlflow.search_runs(["0"], "tags.stage = 'evaluate'", output_format="list")
    for run in (mlflow.get_run(trained.info.run_id), command):
        measured = {key: run.data.metrics[key] for key in expected}
        assert measured == pytest.approx(expected, rel=1e-4)
        whole = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/benchmarks/quiz.json")
        assert whole["results"]["quiz"]["acc,none"] == pytest.approx(np.mean(right))
        assert "samples" not in whole
    assert command.info.run_name == f"evaluate {uri}"
    assert command.data.params["model_run"] == trained.info.run_id
    description = command.data.tags[keys.NOTE]
    assert f"[{trained.info.run_name}](#/experiments/0/runs/{trained.info.run_id}?" in description
    for words in (f"{np.mean(right):.4f} ± ", "(lower is better)", "24 questions, 0 examples"):
        assert words in description
        assert words in done.stdout

    # a folder has no run: the scores are the command's own
    shots = written_task(tmp_path, "shots", fewshot_split="test")
    with mlflow.start_run() as own:
        call(evaluate, model=f"{folder}/model", benchmarks=shots, limit="5", few_shot="2")
    assert "shots: 5 of 24 questions, 2 examples in the prompt" in capsys.readouterr().out
    own = mlflow.get_run(own.info.run_id)
    assert {"benchmark/shots/acc", "benchmark/shots/acc_stderr"} <= set(own.data.metrics)
    assert "model_run" not in own.data.params
    assert "benchmark/shots/acc" not in mlflow.get_run(trained.info.run_id).data.metrics
