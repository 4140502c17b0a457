"""Text → token files, from every form of source."""

import bz2
import dataclasses
import gzip
import json
import lzma
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import pytest
import transformers
import zstandard

from tests.support.commands import ROOT
from training.config import Domain, Tokenizer, Validation
from training.data import corpus, embedded, formats, sources, tokenise
from training.data import tokenizer as tokenizers
from training.data.corpus import Corpus
from training.record.errors import InputError

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


def documents(name: str, domain: Domain) -> list[str]:
    """The texts of one domain, up to `max_mb`."""
    return [text for _, text in sources.Reading({name: domain})]


def documents_of(files: corpus.TokenFiles, tokenizer: Any) -> list[str]:
    """Every document of both parts, cut where the boundaries say."""
    found = []
    for ids, ends in (
        (files.train(), np.memmap(Path(files.folder, "train.idx"), dtype=tokenise.ENDS, mode="r")),
        (files.validation(), files.validation_documents()),
    ):
        assert ends.dtype == np.uint64
        assert ends[-1] == len(ids)
        np.testing.assert_array_equal(np.flatnonzero(ids == tokenizer.eos_token_id) + 1, ends)
        for document in np.split(ids, ends[:-1].astype(int)):
            found.append(tokenizer.decode(np.array(document[:-1])))
    return found


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
    tidy = [{"source": name, "meta": {"set": name}, "text": d} for name, d in both]
    pd.DataFrame(tidy).to_parquet(tmp_path / "d.parquet", row_group_size=150)
    hub = tmp_path / "hub"
    hub.mkdir()
    pd.DataFrame(tidy).to_parquet(hub / "train.parquet")
    lines = "\n".join(map(json.dumps, tidy)).encode()
    half = lines.index(b"\n", len(lines) // 2) + 1
    frames = [zstandard.compress(lines[:half]), zstandard.compress(lines[half:])]
    (tmp_path / "e.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "f.json.bz2").write_bytes(bz2.compress(json.dumps(tidy, indent=1).encode()))
    paragraphs = "\r\n\r\n\r\n".join(document.replace(" the ", "\r\n") for document in news)
    (tmp_path / "g.md.xz").write_bytes(lzma.compress(paragraphs.encode("utf-8-sig")))
    column: dict[str, Any] = {"domain_column": "source", "domain_value": "news"}
    path: dict[str, Any] = {"domain_column": "meta.set", "domain_value": ["news", "none has this"]}
    return {
        "jsonl": Domain(files=str(tmp_path / "a.jsonl"), text_column="body"),
        "gzip": Domain(files=str(tmp_path / "b.jsonl.gz")),
        "lines": Domain(files=str(tmp_path / "c.txt"), sample_by="line"),
        "documents": Domain(files=str(tmp_path / "folder" / "*.txt")),
        "parquet": Domain(files=[str(tmp_path / "*.parquet")], **column),
        "parquet path": Domain(files=str(tmp_path / "d.parquet"), **path),
        "zst path": Domain(files=str(tmp_path / "e.jsonl.zst"), **path),
        "array": Domain(files=str(tmp_path / "f.json.bz2"), **column),
        "paragraphs": Domain(files=str(tmp_path / "g.md.xz"), sample_by="paragraph"),
        "dataset": Domain(dataset=str(hub), **column),
        "dataset path": Domain(dataset=str(hub), **path),
    }


def test_every_form_gives_the_same_documents(
    forms: dict[str, Domain], texts: dict[str, list[str]]
) -> None:
    for name, domain in forms.items():
        found = documents(name, domain)
        if name == "paragraphs":  # of several lines each
            found = [document.replace("\n", " the ") for document in found]
        assert found == texts["news"], name


def test_a_reading_goes_on_from_any_document_of_every_form(forms: dict[str, Domain]) -> None:
    for name, domain in forms.items():
        whole = documents(name, domain)
        first = sources.Reading({name: domain})
        read = [text for _, (_, text) in zip(range(137), first, strict=False)]
        cursor = json.loads(json.dumps(dataclasses.asdict(first.cursor())))
        rest = sources.Reading({name: domain}, sources.Cursor(**cursor))
        assert read + [text for _, text in rest] == whole, name
        assert rest.cursor().bytes[name] == sum(map(len, whole))


def test_domains_of_one_source_are_read_in_one_pass(
    tmp_path: Path, texts: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = zip(texts["news"] + texts["math"], texts["code"] + texts["code"], strict=True)
    pairs = [pair for new, code in both for pair in (("news", new), ("code", code))]
    file = tmp_path / "all.jsonl"
    file.write_text("".join(json.dumps({"set": s, "text": t}) + "\n" for s, t in pairs))
    common: dict[str, Any] = {"files": str(file), "domain_column": "set"}
    domains = {
        "news": Domain(**common, domain_value="news", max_mb=0.2),
        "code": Domain(**common, domain_value=["code"], max_mb=0.1),
        "any": Domain(**common, domain_value=["news", "code"], max_mb=0.1),
        "apart": Domain(**common, domain_value="news", max_mb=0.1, on_error="skip"),
        "whole": Domain(files=str(file), max_mb=0.1),
    }
    assert [list(group) for group in sources.groups(domains)] == [
        ["news", "code", "any"],
        ["apart"],
        ["whole"],
    ]
    alone = prepare({"news": domains["news"]}, tmp_path / "alone")
    read = []
    lines = formats.numbered_lines

    def counted(*arguments: Any) -> Any:
        for line in lines(*arguments):
            read.append(line[0])
            yield line

    monkeypatch.setattr(formats, "numbered_lines", counted)
    named = Tokenizer(name=alone.tokenizer)
    made = prepare(
        {n: domains[n] for n in ("news", "code", "any")}, tmp_path / "w", tokenizer=named
    )
    read = read[read.index(1, 1) :]  # after the look at the first rows
    assert read == list(range(1, len(read) + 1))
    assert len(read) < len(pairs)  # it ends when all have enough
    tokenizer = transformers.AutoTokenizer.from_pretrained(made.tokenizer)
    for name, files in made.domains.items():
        count = files.documents
        mine = [t for s, t in pairs if s in sources.domain_values(domains[name])][:count]
        found = documents_of(files, tokenizer)
        assert sorted(found) == sorted(mine), name
        size = sum(map(len, mine))
        assert size - len(mine[-1]) < domains[name].max_mb * 1e6 <= size  # type: ignore[operator]
    assert made.domains["news"].digest == alone.domains["news"].digest  # whoever is read with it


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
        patch.setattr(tokenise, "write", fail)
        assert prepare(domains, tmp_path / "w") == first
    source.write_text(source.read_text() + "\n" + json.dumps({"body": "one more document"}))
    assert prepare(domains, tmp_path / "w").digest != first.digest


def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenise, "BATCH", 20_000)
    monkeypatch.setattr(tokenise, "SAVE_BYTES", 50_000)


def written(workspace: Path) -> dict[str, bytes]:
    """Every file that a preparation leaves in its domains' folders; names without the folder."""
    folders = list((workspace / "tokens").iterdir())
    assert all((folder / "domain.json").exists() for folder in folders), folders
    names = ("train.bin", "train.idx", "validation.bin", "validation.idx")
    return {f"{f.name}/{name}": (f / name).read_bytes() for f in folders for name in names}


def test_an_interrupted_preparation_goes_on_where_it_was(
    tmp_path: Path, forms: dict[str, Domain], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = forms["zst path"].model_copy(update={"domain_value": "code"})
    domains = {**{name: forms[name] for name in ("jsonl", "zst path", "lines")}, "code": other}
    small_batches(monkeypatch)
    whole = prepare(domains, tmp_path / "fresh")
    show = tokenise.show_progress
    shown: list[int] = []

    def interrupted(bar: Any, batch: tokenise.TextBatch, group: Any) -> None:
        show(bar, batch, group)
        shown.append(len(batch.documents))
        if len(shown) % 4 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(tokenise, "show_progress", interrupted)
    stops = 0
    while True:
        try:
            resumed = prepare(domains, tmp_path / "w")
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops > 8
    assert sum(shown) == sum(files.documents for files in whole.domains.values())  # none twice
    assert resumed.digest == whole.digest
    assert written(tmp_path / "w") == written(tmp_path / "fresh")


@pytest.mark.usefixtures("forms")
def test_finished_domains_are_not_read_again_for_an_interrupted_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column: dict[str, Any] = {"files": str(tmp_path / "e.jsonl.zst"), "domain_column": "source"}
    domains = {name: Domain(**column, domain_value=name) for name in ("news", "code")}
    whole = prepare(domains, tmp_path / "fresh")
    replace, moved = os.replace, []

    def interrupted(source: Path, target: Path) -> None:
        if (Path(source) / "domain.json").exists():
            moved.append(target)
            if len(moved) == 2:
                raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(domains, tmp_path / "w")
    monkeypatch.setattr(tokenise, "write", None)
    assert prepare(domains, tmp_path / "w").digest == whole.digest
    assert written(tmp_path / "w") == written(tmp_path / "fresh")


KILLED = """
import json, os, signal, sys
from pathlib import Path
from training.data import corpus, tokenise
from training.config import Domain, Tokenizer, Validation

tokenise.BATCH, tokenise.SAVE_BYTES = 20_000, 50_000
update, calls = tokenise._Record.update, []

def killed(self, cursor, **options):
    update(self, cursor, **options)
    calls.append(1)
    if len(calls) == int(sys.argv[3]):
        for writer in self._writers.values():  # what was not recorded reaches the disk too
            writer.flush()
        os.kill(os.getpid(), signal.SIGKILL)

tokenise._Record.update = killed
domains = {n: Domain(**d) for n, d in json.loads(sys.argv[1]).items()}
corpus.prepare(domains, Tokenizer(vocab_size=320), Validation(tokens=512), 32, Path(sys.argv[2]))
"""


def start(domains: dict[str, Domain], workspace: Path, kill_at: int) -> "subprocess.Popen[str]":
    """A preparation in a process of its own, killed after so many batches."""
    spec = json.dumps({name: domain.model_dump() for name, domain in domains.items()})
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, spec, str(workspace), str(kill_at)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_preparation_goes_on_where_it_was(
    tmp_path: Path, forms: dict[str, Domain], monkeypatch: pytest.MonkeyPatch
) -> None:
    domains = {name: forms[name] for name in ("jsonl", "zst path")}
    small_batches(monkeypatch)
    whole = prepare(domains, tmp_path / "fresh")
    process = start(domains, tmp_path / "w", kill_at=9)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    (progress,) = (tmp_path / "w").glob("tokens/*.partial/progress.json")
    recorded = json.loads(progress.read_text())
    documents = sum(recorded["domains"]["jsonl"]["documents"])
    (ends,) = progress.parent.glob("*/train.idx")
    assert 0 < recorded["domains"]["jsonl"]["documents"][0] < ends.stat().st_size / 8
    taken: list[str] = []
    encoder = tokenizers.encoder

    def noted(tokenizer: Any) -> Any:
        def encode(texts: list[str]) -> Any:
            taken.extend(texts)
            return encoder(tokenizer)(texts)

        return encode

    monkeypatch.setattr(tokenizers, "encoder", noted)
    resumed = prepare(domains, tmp_path / "w")
    assert (
        len(taken)
        == whole.domains["jsonl"].documents - documents + resumed.domains["zst path"].documents
    )
    assert resumed.digest == whole.digest
    assert written(tmp_path / "w") == written(tmp_path / "fresh")


@pytest.mark.slow
def test_of_two_preparations_the_second_waits_and_finds_all_done(
    tmp_path: Path, forms: dict[str, Domain]
) -> None:
    domains = {name: forms[name] for name in ("jsonl", "lines")}
    (tmp_path / "w").mkdir()
    with filelock.FileLock(tmp_path / "w" / "prepare.lock"):
        both = [start(domains, tmp_path / "w", kill_at=-1) for _ in range(2)]
        for process in both:
            assert process.stderr is not None
            assert "waiting: another process prepares in" in process.stderr.readline()
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert sum("tokenising" in error for error in errors) == 1  # one of them has all the work
    assert prepare(domains, tmp_path / "w").digest == prepare(domains, tmp_path / "v").digest


def test_a_slow_tokenizer_gives_the_same_as_a_fast_one(
    tmp_path: Path, forms: dict[str, Domain], texts: dict[str, list[str]]
) -> None:
    made = prepare({"news": forms["jsonl"]}, tmp_path / "w")
    fast = transformers.AutoTokenizer.from_pretrained(made.tokenizer)
    odd = ["", " <|endoftext|> in the text", "naïve 数学 \U0001f600\r\n\t ", "a" * 5000]

    class Slow:
        is_fast = False

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return fast(*arguments, **options)

    documents = odd + [text for domain in texts.values() for text in domain]
    before = fast(documents, add_special_tokens=False, verbose=False)["input_ids"]
    assert list(tokenizers.encoder(fast)(documents)) == before
    assert list(tokenizers.encoder(Slow())(documents)) == before


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
        (Domain(files="{tmp}/a.jsonl"), "a.jsonl:1: no column 'text'; there are 'body' (the study"),
        (
            Domain(files="{tmp}/a.jsonl", on_error="skip"),
            "no row could be used, 400 were left out; the first: {tmp}/a.jsonl:1: no column 'text'",
        ),
        (Domain(files="{tmp}/d.parquet", text_column="body"), "d.parquet: no column 'body'"),
        (
            Domain(files="{tmp}/d.parquet", domain_column="meta.sub", domain_value="news"),
            "d.parquet: no column 'meta.sub'; there are 'source', 'meta.set', 'text'",
        ),
        (
            Domain(files="{tmp}/e.jsonl.zst", domain_column="meta.sub", domain_value="news"),
            "e.jsonl.zst:1: no 'sub' in column 'meta'; it holds 'set'",
        ),
        (
            Domain(files="{tmp}/e.jsonl.zst", domain_column="text.sub", domain_value="news"),
            "e.jsonl.zst:1: no 'sub' in column 'text'; it holds str",
        ),
        (Domain(files="{tmp}/empty.txt"), "domain 'bad': its source holds no text"),
        (
            Domain(files="{tmp}/d.parquet", domain_column="source", domain_value="math"),
            "no row has source = 'math'; found: code, news",
        ),
        (
            Domain(files="{tmp}/e.jsonl.zst", domain_column="meta", domain_value=["a", "b"]),
            "domain 'bad': no row has meta = 'a' or 'b'; found: {'set': 'code'}, {'set': 'news'}",
        ),
        (Domain(dataset="{tmp}/no/such"), "domain 'bad': {tmp}/no/such"),
        (Domain(files=["{tmp}/a.jsonl", "{tmp}/c.txt"]), "must be of one format"),
        (Domain(files="{tmp}/x.docx"), "has an unknown format; known suffixes: .jsonl"),
        (Domain(files="{tmp}/c.txt"), "held-out part has"),
    ],
)
def test_a_bad_source_is_one_clear_error(
    domain: Domain, message: str, tmp_path: Path, forms: dict[str, Domain]
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "x.docx").write_text("no text")
    files = [domain.files] if isinstance(domain.files, str) else domain.files or []
    changed: dict[str, Any] = {"files": [f.replace("{tmp}", str(tmp_path)) for f in files]}
    if domain.dataset:
        changed = {"dataset": domain.dataset.replace("{tmp}", str(tmp_path))}
    bad = domain.model_copy(update=changed)
    with pytest.raises(InputError, match=re.escape(message.replace("{tmp}", str(tmp_path)))):
        prepare({"good": forms["jsonl"], "bad": bad}, tmp_path / "w")


BAD_LINES = {
    b'{"set": "a", "text": "cut sho': "not JSON: Invalid control character at column 30",
    b'{"set": "a", "text": "\xff"}': "not UTF-8: byte 0xff at column 23",
    b'["a"]': "list, not an object",
    b'{"set": "a"}': "no column 'text'; there are 'set'",
    b'{"set": "a", "text": null}': "column 'text' holds null, not text",
    b'{"set": "a", "text": "\\ud83d"}': "column 'text' holds \\ud83d, half of a surrogate pair",
    b'{"text": "whose?"}': "no column 'set'; there are 'text'",
}


def test_a_bad_line_is_named_or_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "x.jsonl"
    good = [json.dumps({"set": "ab"[i % 2], "text": f"document {i} " * 9}) for i in range(300)]
    domains = {
        name: Domain(files=str(file), domain_column="set", domain_value=name) for name in "ab"
    }
    for line, problem in BAD_LINES.items():
        file.write_bytes(b"\n".join([good[0].encode(), b"", line, good[1].encode()]))
        with pytest.raises(InputError, match=re.escape(f"{file}:3: {problem}")):
            list(sources.Reading(domains))
    lines = [line.encode() for line in good]
    for i, line in enumerate(BAD_LINES):
        lines.insert(40 * (i + 1), line)
    file.write_bytes(b"\n".join(lines))
    skipping = {n: d.model_copy(update={"on_error": "skip"}) for n, d in domains.items()}
    small = Validation(tokens=64)
    made = prepare(skipping, tmp_path / "w", validation=small)
    assert {name: files.documents for name, files in made.domains.items()} == {"a": 150, "b": 150}
    # of unknown domain: no JSON, no UTF-8, no object, no column 'set'
    assert {name: files.skipped for name, files in made.domains.items()} == {"a": 7, "b": 4}
    assert (
        f"left out (on_error: skip): a 7, b 4 rows; the first: {file}:41: not JSON" in caplog.text
    )
    alone = prepare({"b": skipping["b"]}, tmp_path / "v", validation=small)
    assert alone.domains["b"].skipped == 4
    (tmp_path / "x.txt").write_bytes(b"good\nbad \xe9\n")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/x.txt:2: not UTF-8: byte 0xe9")):
        documents("x", Domain(files=str(tmp_path / "x.txt"), sample_by="line"))


@pytest.mark.parametrize(
    "name", ["b.jsonl.gz", "e.jsonl.zst", "f.json.bz2", "g.md.xz", "d.parquet"]
)
@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_file_is_one_clear_error(
    name: str, damage: str, tmp_path: Path, forms: dict[str, Domain]
) -> None:
    file = tmp_path / name
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"no such format" * 9)
    (domain,) = [d for d in forms.values() if d.files == str(file)][:1] or [forms["parquet"]]
    skipping = domain.model_copy(update={"on_error": "skip"})
    with pytest.raises(InputError, match=f"domain 'x': {file}: cannot be read beyond"):
        documents("x", skipping)


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
    assert "A module" not in embedded.code(source)
    assert "return 1" in embedded.code(source)
    assert embedded.prose(source).startswith("A module")
    assert "Short" not in embedded.prose(source)
    for kind in embedded.SUFFIXES:
        first = [text for text, _ in zip(embedded.documents(kind), range(5), strict=False)]
        assert len(set(first)) == 5
        assert all(embedded.DOCUMENT_MIN <= len(t) <= embedded.FILE_CAP for t in first)
