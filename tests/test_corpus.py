"""Text → token files, from every form of source."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import transformers

from training import corpus, embedded, sources
from training.corpus import Corpus
from training.errors import InputError
from training.settings import Domain, Tokenizer, Validation

TOKENIZER = Tokenizer(vocab_size=320)
VALIDATION = Validation(fraction=0.1, tokens=512)


def prepare(domains: dict[str, Domain], workspace: Path, **options: Any) -> Corpus:
    return corpus.prepare(
        domains,
        options.get("tokenizer", TOKENIZER),
        options.get("validation", VALIDATION),
        32,
        workspace,
    )


def all_tokens(files: corpus.TokenFiles) -> int:
    return files.train_tokens + files.validation_tokens


@pytest.fixture
def forms(tmp_path: Path, texts: dict[str, list[str]]) -> dict[str, Domain]:
    """The same documents of one domain in every form a study may name."""
    news = texts["news"]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": d}) for d in news))
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps({"text": d}) for d in news))
    (tmp_path / "c.txt").write_text("\n".join(news))
    (tmp_path / "folder").mkdir()
    for i, document in enumerate(news):
        (tmp_path / "folder" / f"{i:04}.txt").write_text(document)
    both = [("news", d) for d in news] + [("code", d) for d in texts["code"]]
    pd.DataFrame(both, columns=["source", "text"]).to_parquet(tmp_path / "d.parquet")
    hub = tmp_path / "hub"
    hub.mkdir()
    pd.DataFrame(both, columns=["source", "text"]).to_parquet(hub / "train.parquet")
    column = {"domain_column": "source", "domain_value": "news"}
    return {
        "jsonl": Domain(files=str(tmp_path / "a.jsonl"), text_column="body"),
        "gzip": Domain(files=str(tmp_path / "b.jsonl.gz")),
        "lines": Domain(files=str(tmp_path / "c.txt"), sample_by="line"),
        "documents": Domain(files=str(tmp_path / "folder" / "*.txt")),
        "parquet": Domain(files=[str(tmp_path / "*.parquet")], **column),
        "dataset": Domain(dataset=str(hub), **column),
    }


def test_every_form_gives_the_same_documents(
    forms: dict[str, Domain], texts: dict[str, list[str]]
) -> None:
    for name, domain in forms.items():
        assert list(sources.documents(name, domain)) == texts["news"], name


def test_token_files_hold_the_text_and_keep_validation_apart(
    tmp_path: Path, forms: dict[str, Domain], texts: dict[str, list[str]]
) -> None:
    made = prepare({name: forms[name] for name in ("jsonl", "parquet")}, tmp_path / "w")
    tokenizer = transformers.AutoTokenizer.from_pretrained(made.tokenizer)
    end = tokenizer.eos_token
    parts = {}
    for name, files in made.domains.items():
        train = tokenizer.decode(np.array(files.train())).split(end)
        held_out = tokenizer.decode(np.array(files.validation())).split(end)
        assert sorted(filter(None, train + held_out)) == sorted(texts["news"])
        assert not set(filter(None, train)) & set(filter(None, held_out))
        text = "".join(held_out)
        assert files.bytes_per_token == pytest.approx(len(text) / files.validation_tokens)
        parts[name] = set(held_out)
    assert parts["jsonl"] == parts["parquet"]  # the split is by text, not by place
    assert made.domains["jsonl"].digest == made.domains["parquet"].digest


def test_nothing_is_done_twice_until_the_text_changes(
    tmp_path: Path, forms: dict[str, Domain], monkeypatch: pytest.MonkeyPatch
) -> None:
    domains = {name: forms[name] for name in ("jsonl", "lines")}
    first = prepare(domains, tmp_path / "w")
    source = Path(str(domains["jsonl"].files))
    source.touch()

    def fail(*_: object) -> None:
        raise AssertionError("tokenised again")

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_write_tokens", fail)
        assert prepare(domains, tmp_path / "w") == first
    source.write_text(source.read_text() + "\n" + json.dumps({"body": "one more document"}))
    assert prepare(domains, tmp_path / "w").digest != first.digest


def test_an_interrupted_preparation_leaves_nothing_half_done(
    tmp_path: Path, forms: dict[str, Domain], monkeypatch: pytest.MonkeyPatch
) -> None:
    domains = {name: forms[name] for name in ("jsonl", "lines")}
    batches = corpus._batches
    calls = []

    def interrupted(texts: Any) -> Any:
        for batch in batches(texts):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(domains, tmp_path / "w")
    resumed = prepare(domains, tmp_path / "w")
    assert resumed.digest == prepare(domains, tmp_path / "fresh").digest


def test_a_tokenizer_by_name_is_used(tmp_path: Path, forms: dict[str, Domain]) -> None:
    domains = {name: forms[name] for name in ("jsonl", "lines")}
    trained = prepare(domains, tmp_path / "w")
    named = prepare(domains, tmp_path / "v", tokenizer=Tokenizer(name=trained.tokenizer))
    assert named.vocab_size == trained.vocab_size
    assert named.digest == trained.digest


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (Domain(files="/no/such/*.jsonl"), "domain 'bad': no file matches /no/such/*.jsonl"),
        (Domain(files="{tmp}/a.jsonl"), "row 0 has no column 'text'; it has 'body'"),
        (Domain(files="{tmp}/empty.txt"), "domain 'bad': its source holds no text"),
        (
            Domain(files="{tmp}/d.parquet", domain_column="source", domain_value="math"),
            "no row has source = 'math'; found: code, news",
        ),
        (Domain(files=["{tmp}/a.jsonl", "{tmp}/c.txt"]), "must be of one format"),
        (Domain(files="{tmp}/x.docx"), "is of no known format; known suffixes: .jsonl"),
        (Domain(files="{tmp}/c.txt"), "held-out part has"),
    ],
)
def test_a_bad_source_is_one_clear_error(
    domain: Domain, message: str, tmp_path: Path, forms: dict[str, Domain]
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "x.docx").write_text("no text")
    files = [domain.files] if isinstance(domain.files, str) else domain.files or []
    bad = domain.model_copy(update={"files": [f.replace("{tmp}", str(tmp_path)) for f in files]})
    with pytest.raises(InputError, match=re.escape(message)):
        prepare({"good": forms["jsonl"], "bad": bad}, tmp_path / "w")


def test_a_domain_too_small_for_its_validation_part_says_what_to_do(
    tmp_path: Path, forms: dict[str, Domain]
) -> None:
    with pytest.raises(InputError, match=r"raise validation.fraction \(0.1\) or lower"):
        prepare(
            {"a": forms["jsonl"], "b": forms["lines"]},
            tmp_path / "w",
            validation=Validation(fraction=0.1, tokens=100_000),
        )


def test_embedded_python_and_documentation_share_no_text() -> None:
    source = '"""' + "A module. " * 50 + '"""\n\ndef f():\n    """Short."""\n    return 1\n'
    assert "A module" not in embedded._code(source)
    assert "return 1" in embedded._code(source)
    assert embedded._prose(source).startswith("A module")
    assert "Short" not in embedded._prose(source)
    for kind in embedded.SUFFIXES:
        first = [text for text, _ in zip(embedded.documents(kind), range(5), strict=False)]
        assert len(set(first)) == 5
        assert all(embedded.DOCUMENT_MIN <= len(t) <= embedded.FILE_CAP for t in first)
