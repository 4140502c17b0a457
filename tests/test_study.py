"""The study file: what it fixes, and one clear error for each mistake in it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import study
from training.errors import InputError

Write = Callable[[dict[str, Any]], str]


def test_every_ready_made_study_loads() -> None:
    names = [path.stem for path in study.STUDIES.glob("*.yaml")]
    assert "quickstart" in names
    for name in names:
        plan = study.load(name)
        assert sum(plan.weights().values()) == pytest.approx(1)
        assert plan.size(plan.target.size).n_params > max(
            plan.size(size).n_params for size in plan.sweep.sizes
        )


def test_files_are_relative_to_the_study_file(
    miniature: dict[str, Any], write_study: Write
) -> None:
    plan = study.load(write_study(miniature))
    files = plan.domains["news"].files
    assert files is not None
    assert Path(files[0]).is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domian": {}}, "unknown key 'domian'; the nearest known key is 'domains'"),
        ({"training": {"batchsize": 3}}, "'training.batchsize'; the nearest known key is 'batch_s"),
        ({"domains": {"news": {"file": "x"}}}, "'domains.news.file'; the nearest known key is 'fi"),
        ({"domains": {"news": {}}}, "domains.news: give exactly one of embedded, files, dataset"),
        ({"bounds": {"nevs": [0, 1]}}, "bounds: unknown domain 'nevs'; known:"),
        ({"bounds": {"news": [0.7, 1], "code": [0.6, 1]}}, "bounds: no mixture fits"),
        ({"default_mixture": {"news": 0.5}}, "default_mixture: the proportions sum"),
        ({"validation": {"weights": {"news": 1}}}, "no weight for code, math; give 0 to ignore"),
        ({"sweep": {"sizes": ["huge"]}}, "sweep.sizes: no size 'huge'; there are tiny, small, 0.1M"),
        ({"sweep": {"mixtures": "many"}}, "sweep.mixtures: Input should be a valid integer"),
        ({"training": {"first_evaluation": 99}}, "lies after the last step"),
        ({"sizes": {"tiny": {"heads": 3}}}, "heads (3) must divide hidden_size (16)"),
        ({"tokenizer": {"name": "gpt2"}}, "tokenizer: give exactly one of vocab_size and name"),
        ({"sweep": {"sizes": ["tiny"]}}, "sweep.sizes: proxies of one size show no size law"),
        ({"training": {"evaluations": 1}}, "training.evaluations: one evaluation a run shows no"),
        ({"name": "a name with spaces"}, "name: String should match pattern"),
    ],
)
def test_a_bad_study_names_the_file_the_key_and_the_rule(
    change: dict[str, Any], message: str, miniature: dict[str, Any], write_study: Write
) -> None:
    def merge(old: Any, new: Any) -> Any:
        if not isinstance(old, dict) or not isinstance(new, dict):
            return new
        return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}

    if change == {"domains": {"news": {}}}:
        path = write_study({**miniature, "domains": {**miniature["domains"], "news": {}}})
    else:
        path = write_study(merge(miniature, change))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        study.load(path)
    assert str(caught.value).startswith(path)


def test_a_missing_study_lists_the_ready_made_ones() -> None:
    with pytest.raises(InputError, match=r"study 'nowhere': no such file .*quickstart"):
        study.load("nowhere")


def test_what_is_no_yaml_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("- a\n- list")
    with pytest.raises(InputError, match="a study is a mapping of keys; found list"):
        study.load(str(path))
    path.write_text("a: [unclosed")
    with pytest.raises(InputError, match="not YAML"):
        study.load(str(path))
