"""The texts of parameters and the YAML of studies: read as they are written, or refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.command import texts
from pipelines.study import load, yaml_file
from tests.support.commands import run_entry
from tests.support.studies import WriteStudy
from training.record.errors import InputError
from training.record.keys import name_fault

DOMAINS = ["wiki:en", "wiki:de", "web/news", "common crawl"]


def test_names_of_domains_may_hold_colons_slashes_and_spaces_in_every_parameter() -> None:
    assert all(name_fault(name) is None for name in DOMAINS)
    read = texts.mixture("wiki:en=0.5, web/news=0.3,common crawl=2e-1", DOMAINS)
    assert read == {"wiki:en": 0.5, "wiki:de": 0.0, "web/news": 0.3, "common crawl": 0.2}
    assert texts.shares("bundles", "w=wiki:en:0.6+wiki:de:0.4,v=web/news:1") == {
        "w": {"wiki:en": 0.6, "wiki:de": 0.4},
        "v": {"web/news": 1.0},
    }
    assert texts.limits("bounds", "wiki:en+wiki:de=0.1:0.5,web/news=:0.3,common crawl=0.1") == {
        "wiki:en+wiki:de": (0.1, 0.5),
        "web/news": (0.0, 0.3),
        "common crawl": (0.1, 0.1),
    }
    assert texts.names("domains", "wiki:en, wiki:de") == ["wiki:en", "wiki:de"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_json_file_is_read_in_every_unicode_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "weights=1.json"  # a file, whatever its name looks like
    path.write_bytes(json.dumps({"wiki:ön": 2}, ensure_ascii=False).encode(encoding))
    assert texts.numbers("weights", str(path)) == {"wiki:ön": 2.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"web": 0.3, "code": 0.2, "web": 0.5}', "'web' is given twice"),
        (b'{"web": "\xff"}', "not Unicode text"),
        (b'{"web": 0.3', "not JSON"),
        (b'{"web": NaN}', "'web': nan is not a finite number"),
        (b'{"web": 1' + b"0" * 400 + b"}", "is not a finite number"),
        (b'{"web": true}', "'web': True is not a number"),
        (b'{"web": [1]}', "'web': [1] is not a number"),
        (b"[1, 2]", "write a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b"", "not JSON"),
    ],
)
def test_a_bad_json_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "weights.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        texts.numbers("weights", str(path))
    assert str(raised.value).startswith(f"weights: {path}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: texts.integer("tokens", "inf"), "tokens: 'inf' is not a finite number"),
        (lambda: texts.integer("tokens", "nan"), "tokens: 'nan' is not a finite number"),
        (lambda: texts.integer("tokens", "1e400"), "tokens: '1e400' is not a finite number"),
        (
            lambda: texts.integer("tokens", "1e20"),
            "is not an integer from 0 to 9.2e+18",
        ),
        (lambda: texts.integer("seed", "1.5"), "seed: '1.5' is not an integer"),
        (lambda: texts.integer("seed", "-1"), "seed: '-1' is not an integer from 0"),
        (lambda: texts.pairs("weights", "web=1,,code=2"), "has an empty item; remove a ','"),
        (lambda: texts.pairs("weights", "web=1,web=2"), "weights: 'web' is given twice"),
        (lambda: texts.pairs("weights", "=1"), "weights: '=1' is not name=value"),
        (lambda: texts.pairs("weights", "web=1=2"), "weights: 'web': '1=2' is not a number"),
        (lambda: texts.limits("bounds", "web="), "bounds: 'web': write name=lowest:highest"),
        (lambda: texts.shares("split", "a=b:1+b:1"), "split: 'a': 'b' is given twice"),
        (lambda: texts.shares("split", "a=:1"), "split: 'a': ':1' is not part:share"),
        (lambda: texts.names("original", "a,a"), "original: 'a' is given twice"),
        (lambda: texts.numbers("weights", "no/such.json"), "No such file or directory"),
        (lambda: texts.numbers("weights", "x" * 5000), "File name too long"),
        (lambda: texts.numbers("weights", "a\0b"), "embedded null"),
        (lambda: texts.mixture("/", ["a"]), "Is a directory"),
    ],
)
def test_a_bad_parameter_is_one_line(read: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        read()
    assert "\n" not in str(raised.value)


def test_an_integer_keeps_every_digit() -> None:
    assert texts.integer("seed", "9007199254740993") == 2**53 + 1
    assert texts.integer("tokens", "1e9") == 10**9


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a,b", "contains ','"),
        ("a=b", "contains '='"),
        ("a\n", "contains '\\n'"),
        (" a", "begins or ends with a space"),
        ("..", "'.' or '..'"),
        ("a//b", "is empty"),
        ("/a", "is empty"),
        ("", "is empty"),
        ("a" * 260, "260 characters"),
    ],
)
def test_the_rule_for_names_says_what_is_wrong(name: str, fault: str) -> None:
    assert fault in str(name_fault(name))


def edited(path: str, old: str, new: str) -> str:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  code:\n", "  news:\n", "line 5: the key 'news' is given in line 3 already; remove one"),
        ("workspace:", "name: other\nworkspace:", "the key 'name' is given in line 1 already"),
        ("  code:\n", "  no:\n", "line 5: YAML reads the key 'no' as false; put it in quotes"),
        ("  code:\n", "  1:\n", "line 5: YAML reads the key '1' as the int 1; put it in quotes"),
        ("steps: 12", "steps: 010", "YAML reads 010 as the int 8"),
        ("steps: 12", "steps: 1:30", "YAML reads 1:30 as the int 90"),
        ("name: miniature", "name: off", "line 1: YAML reads off as false"),
        ("name: miniature", "name: 2026-11-26", "name: Input should be a valid string, and YAML"),
        ("news: 0.6", "news: .nan", "default_mixture.news: Input should be a finite number"),
        ("  code:\n", "  'a,b':\n", "domains.a,b: it contains ','; a domain's name consists of"),
        ("steps: 12", "steps: 1000000000000000000", "training.steps: more than 9.2e+18 tokens"),
        ("name:", "name: [", "not YAML"),
    ],
)
def test_yaml_is_read_as_it_is_written_or_refused(
    miniature: dict[str, Any], write_study: WriteStudy, old: str, new: str, message: str
) -> None:
    path = edited(write_study(miniature), old, new)
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        load.load(path)
    assert str(raised.value).startswith(path)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_merged_keys_are_no_repetition_and_deep_nesting_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("base: &B {x: 1}\nd: {a: &A {<<: *B, x: 3}}\nc: {<<: *A, y: 2}\n")
    assert yaml_file.load(path)["c"] == {"x": 3, "y": 2}
    path.write_text("base: &B {x: 1, x: 2}\nc: {<<: *B}\n")
    with pytest.raises(InputError, match="line 1: the key 'x' is given in line 1 already"):
        yaml_file.load(path)
    path.write_text("? [a]\n: 1\n")
    with pytest.raises(InputError, match="line 1: a key is a list or a mapping"):
        yaml_file.load(path)
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="not YAML"):
        yaml_file.load(path)


@pytest.mark.parametrize("command", [[], ["imports"], ["nothing", "--study", "x"]])
def test_an_unknown_command_is_one_line(command: list[str]) -> None:
    done = run_entry(*(command or [""]))
    assert done.returncode == 1
    assert done.stderr.startswith("usage: python -m pipelines NAME …; NAME is one of main, ")
    assert done.stderr.count("\n") == 1


def test_a_study_takes_every_name_that_import_takes(
    miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    names = dict(zip(miniature["domains"], ["no", "wiki:de/ö", "common crawl"], strict=True))
    miniature["domains"] = {names[d]: source for d, source in miniature["domains"].items()}
    miniature["default_mixture"] = {names[d]: s for d, s in miniature["default_mixture"].items()}
    assert list(load.load(write_study(miniature)).domains) == list(names.values())


@pytest.mark.slow
def test_values_that_begin_with_a_dash_and_a_terminal_without_unicode(
    store: str, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    assert store
    miniature["domains"] = {f"-ö{d}": source for d, source in miniature["domains"].items()}
    miniature["default_mixture"] = "proportional"
    study = write_study(miniature)
    done = run_entry("prepare", "--study", study, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "-\\xf6news" in done.stdout
    wrong = "-önews=0.5,-öcode=0.4"
    done = run_entry("train", "--study", study, "--size", "tiny", "--mixture", wrong)
    assert done.returncode == 1
    assert done.stderr.startswith("train: mixture: the proportions sum to 0.9; they must sum to 1")
