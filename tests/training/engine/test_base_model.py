"""Bases: a model goes on from its weights, and what is no base is refused."""

from pathlib import Path
from typing import Any

import pytest
import transformers

from pipelines.prepare import prepare
from pipelines.study.study import Study
from tests.support.tiny_runs import evaluations, planned
from training.data.corpus import Corpus
from training.engine import base_model as bases
from training.engine import model as models
from training.engine import trainer as trainers
from training.record.errors import InputError

pytestmark = pytest.mark.usefixtures("cpu")


@pytest.fixture
def prepared(miniature: dict[str, Any]) -> Corpus:
    return prepare(Study.model_validate(_absolute(miniature))).corpus


def _absolute(study: dict[str, Any]) -> dict[str, Any]:
    folder = Path(study["workspace"]).parent
    domains = {name: {"files": str(folder / d["files"])} for name, d in study["domains"].items()}
    return {**study, "domains": domains}


def saved_model(folder: Path, corpus: Corpus, **shape: int) -> Path:
    """A checkpoint like those that runs log as the artifact `model`."""
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    settings |= {"max_position_embeddings": 32, "vocab_size": corpus.vocab_size, **shape}
    config = transformers.GPTNeoXConfig(intermediate_size=64, **settings)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(corpus.tokenizer).save_pretrained(folder)
    return folder


def test_a_continued_model_begins_with_the_losses_of_its_base(
    prepared: Corpus, tmp_path: Path
) -> None:
    mixture = dict.fromkeys(prepared.domains, 1 / 3)
    run = planned(prepared, mixture=mixture, workspace=tmp_path)
    trainer = trainers.Trainer(run, prepared)
    last = [report.evaluation for report in trainer.reports()][-1]
    trainer.save_model(tmp_path / "model")
    trainer.close()
    transformers.AutoTokenizer.from_pretrained(prepared.tokenizer).save_pretrained(
        tmp_path / "model"
    )
    base, size = bases.find(str(tmp_path / "model"), prepared, 32, tmp_path)
    continued = planned(prepared, mixture=mixture, workspace=tmp_path, base=base, size=size)
    (step, before), *rest = evaluations(continued, prepared)
    assert step == 0
    assert last is not None
    assert before.losses == pytest.approx(last.losses, abs=1e-6)
    assert [step for step, _ in rest] == [5, 10, 19, 37]
    assert sum(rest[-1][1].losses.values()) < sum(before.losses.values())


@pytest.mark.slow
def test_a_base_that_is_none_is_one_clear_error(
    prepared: Corpus, texts: dict[str, list[str]], tmp_path: Path
) -> None:
    def load(given: object, length: int) -> None:
        base, size = bases.find(str(given), prepared, length, tmp_path)
        models.build(size, prepared.vocab_size, length, 0, base)

    def refused(given: object, message: str, length: int = 32) -> None:
        with pytest.raises(InputError, match=message):
            load(given, length)

    good = saved_model(tmp_path / "good", prepared)
    refused(tmp_path / "nowhere", r"critical.base: '.*nowhere' is not a folder; a base")
    refused("runs:/0123456789abcdef0123456789abcdef/model", "critical.base: .* cannot be downl")
    refused(good, "max_position_embeddings 32, less than training.sequence_length", 64)
    for config in (
        transformers.T5Config(),
        transformers.BertConfig(architectures=["BertForMaskedLM"]),
    ):
        config.save_pretrained(tmp_path / config.model_type)
        refused(
            tmp_path / config.model_type, rf"\({config.model_type}.*\) is not a causal language"
        )
    small = saved_model(tmp_path / "small", prepared, vocab_size=100)
    refused(small, "embeddings of 100 tokens, the study's tokenizer 320")

    bare = tmp_path / "bare"
    transformers.AutoModelForCausalLM.from_pretrained(good).save_pretrained(bare)
    refused(bare, "holds no tokenizer .tokenizer.json")
    tokenizer = transformers.AutoTokenizer.from_pretrained(good)
    words = [text[::-1] for documents in texts.values() for text in documents]
    tokenizer.train_new_from_iterator(words, 320).save_pretrained(bare)
    refused(bare, "has another tokenizer than the study: they cut text of domain 'news'")

    wider = saved_model(tmp_path / "wider", prepared, hidden_size=32)
    (good / "config.json").write_text((wider / "config.json").read_text())
    refused(good, "base .*good'")
    (good / "model.safetensors").unlink()
    refused(good, r"holds no weights \(\*.safetensors or \*.bin\)")
