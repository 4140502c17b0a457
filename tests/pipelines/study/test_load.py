"""The study file: what it fixes, and one clear error for each mistake in it."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.runs.proxy_runs import proxy_runs
from pipelines.study import load as study
from pipelines.study import repetition
from pipelines.study.prepared import Prepared
from pipelines.study.study import Study
from tests.support.studies import WriteStudy
from training.data.corpus import Corpus, TokenFiles
from training.record.errors import InputError
from training.run import Run, fingerprint

CRITICAL: dict[str, Any] = {
    "size": "tiny",
    "original": {"news": 1},
    "new": {"code": 1},
    "steps": 9,
    "shares": [0.2, 0.5, 0.8],
}
READY_MADE = sorted(path.stem for path in study.STUDIES.glob("*.yaml"))

WIKI: dict[str, Any] = {"files": "wiki.jsonl"}
QUIZ = WIKI | {"answer_column": "answer"}


@pytest.mark.parametrize("name", READY_MADE)
def test_every_ready_made_study_loads(name: str) -> None:
    plan = study.load(name)
    assert plan.name == name
    assert sum(plan.weights().values()) == pytest.approx(1)
    sizes = [plan.size(size).n_params for size in plan.sweep.sizes]
    assert plan.size(plan.target.size).n_params >= max(sizes)
    assert (len(plan.domains) == 2) == (name in ("two_domains", "two_domains_tiny"))
    if isinstance(plan.default_mixture, dict):
        assert sum(plan.default_mixture.values()) == pytest.approx(1, abs=1e-9)


def test_files_are_relative_to_the_study_file(
    miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    plan = study.load(write_study(miniature))
    files = plan.domains["news"].files
    assert files is not None
    assert Path(files[0]).is_file()


def test_a_config_is_a_path_beside_the_study_file_or_a_hub_id(
    miniature: dict[str, Any], write_study: WriteStudy, tmp_path: Path
) -> None:
    (tmp_path / "llama.json").write_text("{}")
    miniature["sizes"] |= {"mine": {"config": "llama.json"}, "hub": {"config": "org/llama"}}
    plan = study.load(write_study(miniature))
    assert plan.sizes["mine"].config == str(tmp_path / "llama.json")
    assert plan.sizes["hub"].config == "org/llama"


def test_listed_mixtures_are_trained_as_they_stand(
    miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    miniature["sweep"]["mixtures"] = [
        {"math": 0.5, "news": 0.5},
        {"news": 0.2, "code": 0.4, "math": 0.4},
        {"code": 1},
    ]
    plan = study.load(write_study(miniature))
    runs = proxy_runs(of(plan, 100_000))
    assert [run.name for run in runs] == [
        f"mix{i:02d}-{size}" for size in ("small", "tiny") for i in range(3)
    ]
    assert [list(run.mixture.values()) for run in runs[:3]] == [
        [0.5, 0.0, 0.5],
        [0.2, 0.4, 0.4],
        [0.0, 1.0, 0.0],
    ]


def test_further_seeds_repeat_the_first_mixture_at_every_size(
    miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    usual = [fingerprint(run) for run in proxy_runs(of(study.load(write_study(miniature)), 10**5))]
    miniature["sweep"]["seeds"] = [1, 7]
    runs = proxy_runs(of(study.load(write_study(miniature)), 10**5))
    again = {run.name: run for run in runs if run.seed}
    assert [*again] == [f"default-{size}-seed{s}" for size in ("small", "tiny") for s in (1, 7)]
    assert {run.seed for run in again.values()} == {1, 7}
    assert all(run.mixture == runs[0].mixture for run in again.values())
    assert usual == [fingerprint(run) for run in runs if not run.seed]
    miniature["sweep"]["seeds"] = [0, 1]
    with pytest.raises(InputError, match="0 is already the seed"):
        study.load(write_study(miniature))


def of(plan: Study, train_tokens: int) -> Prepared:
    """The study with so many training tokens of each domain, without files."""
    files = TokenFiles("", "uint16", train_tokens, 1000, 2.0, 1, "digest")
    corpus = Corpus(Path("manifest.json"), "", 320, dict.fromkeys(plan.domains, files))
    return Prepared(plan, corpus)


def test_runs_that_repeat_their_text_are_told_or_refused(
    miniature: dict[str, Any], write_study: WriteStudy, caplog: pytest.LogCaptureFixture
) -> None:
    def planned(**rule: Any) -> Prepared:
        return of(study.load(write_study({**miniature, "repetition": rule})), 1000)

    prepared = planned(limit=1.5, on_excess="warn")
    runs = proxy_runs(prepared)  # of 3,072 tokens; the default has 60 % of news
    over = sum(max(run.mixture.values()) * 3.072 > 1.5 for run in runs)
    assert 0 < over < len(runs)
    prepared.check_repetition(runs)
    (told,) = caplog.messages
    worst = max(runs, key=lambda run: max(run.mixture.values()))
    assert "\n" not in told
    assert f"run {worst.name} would see domain" in told
    assert f"{max(worst.mixture.values()) * 3.072:.1f} times; {over} of {len(runs)} runs" in told

    with pytest.raises(InputError, match=r"raise repetition\.limit"):
        planned(limit=1.5, on_excess="refuse").check_repetition(runs)
    caplog.clear()
    planned(limit=4, on_excess="refuse").check_repetition(runs)
    assert not caplog.messages


def test_a_share_of_the_text_matches_the_repetition_of_the_target(
    miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    everything = study.load(write_study(miniature))
    miniature["repetition"] = {"match_target": True}
    matched = of(study.load(write_study(miniature)), 1000)

    def run(steps: int) -> Run:
        return matched.run("one", matched.default, size="tiny", seed=0, steps=steps)

    assert run(12).data_share == pytest.approx(12 / 18)
    assert run(18).data_share == run(40).data_share == 1
    epochs = [repetition.most_repeated(run(steps), matched.corpus).epochs for steps in (12, 18)]
    assert epochs == pytest.approx([0.6 * 18 * 8 * 32 / 1000] * 2)
    assert matched.tag != of(everything, 1000).tag
    with pytest.raises(InputError, match=r"may see 26 tokens of domain 'news' .* one sequence"):
        of(matched.study, 40).check_repetition([run(12)])


def listed(third: dict[str, Any]) -> dict[str, Any]:
    """A change that lists three mixtures."""
    return {"sweep": {"mixtures": [{"news": 1}, {"math": 1}, third]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domian": {}}, "unknown key 'domian'; the nearest known key is 'domains'"),
        ({"training": {"batchsize": 3}}, "'training.batchsize'; the nearest known key is 'batch_s"),
        ({"domains": {"news": {"file": "x"}}}, "'domains.news.file'; the nearest known key is 'fi"),
        ({"critical": {"share": []}}, "'critical.share'; the nearest known key is 'shares'"),
        ({"phases": {"trunk": 2}}, "'phases.trunk'; the nearest known key is 'trunks'"),
        ({"schedule": [{"from": 0}]}, "'schedule[0].from'; the nearest known key is 'from_tokens'"),
        ({"schedule": [{"from_tokens": 7, "mixture": {"news": 1}}]}, "schedule[0].from_tokens: 7"),
        ({"phases": {"size": "huge", "steps": [1, 2]}}, "phases.size: no size 'huge'; there are"),
        ({"critical": {**CRITICAL, "base": "x"}}, "critical: give either base, or size (of one"),
        ({"critical": {**CRITICAL, "size": "huge"}}, "critical.size: no size 'huge'; there are"),
        (
            {"critical": {**CRITICAL, "shares": [1]}},
            "shares, mixtures: give three or more mixtures",
        ),
        ({"critical": {**CRITICAL, "new": {"nwes": 1}}}, "critical.new: unknown domain 'nwes'; kn"),
        ({"critical": {**CRITICAL, "new": {"news": 1}}}, "'news' is in original and in new; a dom"),
        ({"domains": {"news": {}}}, "domains.news: give exactly one of embedded, files, dataset"),
        ({"bounds": {"nevs": [0, 1]}}, "bounds: nevs: unknown domain 'nevs'; known:"),
        (
            {"bounds": {"news": [0.7, 1], "code": [0.6, 1]}},
            "no mixture satisfies all of: bounds: news at least 0.7; bounds: code at least 0.6",
        ),
        ({"default_mixture": {"news": 0.5}}, "default_mixture: the proportions sum"),
        ({"validation": {"weights": {"news": 1}}}, "no weight for code, math; give 0 to ignore"),
        ({"validation": {"unit": "bits"}}, "validation.unit: "),
        ({"validation": {"sets": {"news": WIKI}}}, "validation.sets: 'news' is also a domain"),
        ({"validation": {"sets": {"worst": WIKI}}}, "'worst' is a word of search.objective"),
        ({"validation": {"tasks": {"news": QUIZ}}}, "validation.tasks: 'news' is also a domain"),
        (
            {"validation": {"sets": {"wiki": WIKI}, "tasks": {"wiki": QUIZ}}},
            "validation.tasks: 'wiki' is also a set",
        ),
        (
            {"validation": {"tasks": {"quiz": QUIZ}, "weights": {"quizz": 1}}},
            "validation.weights: unknown domain 'quizz'",
        ),
        (
            {"validation": {"tasks": {"quiz": WIKI}}},
            "validation.tasks.quiz: give either answer_column, or choices_column and label_column",
        ),
        (
            {"validation": {"tasks": {"quiz": QUIZ | {"text_column": "t"}}}},
            "unknown key 'validation.tasks.quiz.text_column'; the nearest known key is",
        ),
        (
            {"sweep": {"sizes": ["huge"]}},
            "sweep.sizes: no size 'huge'; there are tiny, small, 0.1M",
        ),
        ({"sweep": {"mixtures": [{"news": 1}]}}, "sweep.mixtures: List should have at least 3"),
        (listed({"news": 0.5}), "sweep.mixtures[2]: the proportions sum to 0.5"),
        (listed({"nevs": 1}), "sweep.mixtures[2]: unknown domain 'nevs'"),
        (listed({"math": 1}), "sweep.mixtures[2]: the same mixture as sweep.mixtures[1]"),
        (listed({"news": "x"}), "sweep.mixtures[2].news: Input should be a valid number"),
        (
            {**listed({"news": 0.9, "code": 0.1}), "bounds": {"code": [0, 0.05]}},
            "sweep.mixtures[2] breaks the rule 'bounds: code at most 0.05'",
        ),
        ({"sweep": {"mixtures": "many"}}, "sweep.mixtures: Input should be a valid integer"),
        ({"training": {"first_evaluation": 99}}, "lies after the last step"),
        (
            {"training": {"decay_steps": 8}, "target": {"steps": 8}},
            "target.steps: 8 must be more than training.decay_steps (8)",
        ),
        ({"sizes": {"tiny": {"heads": 3}}}, "heads (3) must divide hidden_size (16)"),
        ({"tokenizer": {"name": "gpt2"}}, "tokenizer: give exactly one of vocab_size and name"),
        ({"sweep": {"sizes": ["tiny"]}}, "sweep.sizes: proxies of one size show no size law"),
        ({"training": {"evaluations": 1}}, "training.evaluations: one evaluation per run shows no"),
        ({"target": {"size": "tiny", "steps": 12, "seeds": [3, 3]}}, "a seed is given twice"),
        (
            {"bounds": {"news": (0.6, 0.8)}, "search": {"bounds": {"news": (0.0, 0.5)}}},
            "bounds: news: [0, 0.5] and [0.6, 0.8] have nothing in common",
        ),
        (
            {
                "bounds": {"math": (0.0, 0.0)},
                "default_mixture": {"news": 0.7, "code": 0.3, "math": 0.0},
                "critical": {
                    "original": {"news": 1},
                    "new": {"math": 1},
                    "steps": 9,
                    "shares": [0.2, 0.5, 0.8],
                    "size": "tiny",
                },
            },
            "critical: it trains on 'math', which bounds holds at 0",
        ),
        ({"name": "a name with spaces"}, "name: it must have 1 to 60 of the characters"),
    ],
)
def test_a_bad_study_names_the_file_the_key_and_the_rule(
    change: dict[str, Any], message: str, miniature: dict[str, Any], write_study: WriteStudy
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


def test_a_short_run_is_evaluated_at_its_end(
    miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    miniature["training"]["decay_steps"] = 2
    prepared = of(study.load(write_study(miniature)), 1000)
    run = prepared.run("short", prepared.default, size="tiny", seed=0, steps=3)
    assert (run.training.steps, run.training.first_evaluation) == (3, 3)
    with pytest.raises(InputError, match=r"steps: 2 must be more than training\.decay_steps \(2\)"):
        prepared.run("shorter", prepared.default, size="tiny", seed=0, steps=2)


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


def test_a_study_tells_a_bundle_that_is_broken(
    miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    miniature["bundles"] = {"text": {"news": 0.75, "math": 0.25}}
    miniature["sweep"]["mixtures"] = [
        {"news": 0.75, "math": 0.25},
        {"news": 0.3, "math": 0.1, "code": 0.6},
        {"news": 0.3, "math": 0.3, "code": 0.4},
    ]
    with pytest.raises(
        InputError, match=r"sweep.mixtures\[2\] breaks the rule 'bundles: 0.75 news"
    ):
        study.load(write_study(miniature))
