"""`plan=true`: its numbers against ones worked out by hand, and that it trains nothing."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import mlflow
import pytest

from pipelines import main, sweep, train
from pipelines.prepare import prepare
from pipelines.runs import budget, dry_run
from pipelines.runs.proxy_runs import proxy_runs
from pipelines.study import load as studies
from tests.support.commands import call
from tests.support.stores import empty_store
from tests.support.studies import WriteStudy
from training.record import keys
from training.record.errors import InputError
from training.run import fingerprint

TOKENS = 12 * 8 * 32  # of one proxy: steps × sequences × length
TINY = 1 * (12 * 16**2 + 13 * 16) + 2 * 16  # non-embedding parameters
SMALL = 1 * (12 * 32**2 + 13 * 32) + 2 * 32
FLOPS = {"tiny": 6 * (TINY + 320 * 16), "small": 6 * (SMALL + 320 * 32)}  # a token
PROXIES = 4 * TOKENS * sum(FLOPS.values())


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(huggingface_hub, "get_session", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with empty_store(tmp_path_factory.mktemp("store")) as uri:
        yield uri


def plan_sweep(study: str, throughput: str = "") -> mlflow.entities.Run:
    """The run that planning a sweep leaves."""
    with mlflow.start_run() as active:
        call(sweep, study=study, workers="2", plan="true", throughput=throughput)
    return mlflow.get_run(active.info.run_id)


def finished_proxy(n_params: int, tokens_per_second: float) -> None:
    with mlflow.start_run():
        mlflow.log_param(keys.N_PARAMS, n_params)
        mlflow.log_metric(keys.TOKENS_PER_SECOND, tokens_per_second)
        mlflow.set_tag(keys.COMPLETE, "true")


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_totals_are_those_worked_out_by_hand(
    miniature: dict[str, Any],
    write_study: WriteStudy,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for domain in miniature["domains"].values():
        domain["max_mb"] = 0.1
    miniature["engine"] = {"save_models": True}
    run = plan_sweep(write_study(miniature), throughput="1e6")
    embedding = 2 * 320
    tokens = {"tiny": TINY + embedding * 16, "small": SMALL + embedding * 32}
    found = {k.removeprefix("planned/"): v for k, v in run.data.metrics.items()}
    assert found["runs"] == 8
    assert found["tokens"] == 8 * TOKENS
    assert found["flops"] == PROXIES
    assert found["target_flops"] == 6 * FLOPS["small"] * 18 * 8 * 32
    assert found["worker_hours"] == pytest.approx(PROXIES / 1e6 / 3600)
    read = miniature["training"]["evaluations"] * 3 * 1024  # tokens of a run's evaluations
    evaluated = (4 * FLOPS["tiny"] + (4 + 6) * FLOPS["small"]) / 3 * read
    trained = found["flops"] + found["target_flops"]
    assert found["evaluation_share"] == pytest.approx(evaluated / (trained + evaluated))
    assert found["model_bytes"] == 4 * 4 * sum(tokens.values())
    assert found["checkpoint_bytes"] == 16 * tokens["small"] * 2
    per_domain = found["token_bytes"] / 2 / 3
    assert 0.1e6 / 3 < per_domain < 0.1e6  # one to three bytes of text a token
    assert found["epochs"] == pytest.approx(0.6 * 1.5 * TOKENS / (0.9 * per_domain), rel=0.01)
    told = capsys.readouterr().out
    assert "nothing is trained" in told
    assert "1.00e+06 given (small, tiny)" in told
    assert f"evaluations: {found['evaluation_share']:.0%} of the computation, " in told
    assert "lower validation.tokens or training.evaluations" in told
    assert "of news in target-default (estimated from max_mb)" in told


@pytest.mark.usefixtures("store")
def test_a_plan_trains_and_prepares_nothing(
    miniature: dict[str, Any], write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    run = plan_sweep(write_study(miniature))
    assert run.data.tags[dry_run.DRY_RUN_TAG] == "true"
    assert not Path(miniature["workspace"]).exists()
    assert len(mlflow.search_runs(output_format="list")) == 1
    told = capsys.readouterr().out
    assert "hours: unknown; give throughput=" in told
    assert "unknown before preparing: news, code, math have no max_mb" in told
    assert "planned/worker_hours" not in run.data.metrics
    names = {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert names == {"plan.json", "plan.txt"}


@pytest.mark.usefixtures("store")
def test_main_plans_the_whole_loop(
    miniature: dict[str, Any], write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    with mlflow.start_run() as active:
        call(main, study=write_study(miniature), workers="2", plan="true", throughput="1e6")
    found = mlflow.get_run(active.info.run_id).data.metrics
    targets = 6 * FLOPS["small"] * 18 * 8 * 32
    assert found["planned/flops"] == PROXIES
    assert found["planned/target_flops"] == targets
    told = capsys.readouterr().out
    assert f"with the targets {14:>13}" in told
    stages = re.findall(r"^(prepare|sweep|fit|optimize|verify) +", told, re.M)
    assert stages == ["prepare", "sweep", "fit", "optimize", "verify"]
    assert not Path(miniature["workspace"]).exists()
    assert not mlflow.search_registered_models()


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_column": "body"}, "no column 'body'"),
        ({"domain_column": "source", "domain_value": "web"}, "no column 'source'"),
        ({"files": "/no/such.jsonl"}, "no file matches"),
    ],
)
def test_a_plan_looks_at_columns_before_anything_is_prepared(
    change: dict[str, str], message: str, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    miniature["domains"]["code"] |= change
    path = write_study(miniature)
    with pytest.raises(InputError, match=re.escape(message)), mlflow.start_run():
        call(main, study=path, workers="2", plan="true")
    assert not Path(miniature["workspace"]).exists()


@pytest.mark.usefixtures("store")
def test_hours_follow_from_the_throughput_of_finished_runs(
    miniature: dict[str, Any], write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    for speed in (100.0, 200.0, 900.0):
        finished_proxy(TINY, speed)
    run = plan_sweep(write_study(miniature))
    seconds = 4 * TOKENS / 200 * (1 + FLOPS["small"] / FLOPS["tiny"])
    assert run.data.metrics["planned/worker_hours"] == pytest.approx(seconds / 3600)
    told = capsys.readouterr().out
    assert "measured on 3 runs (tiny)" in told
    assert "as measured on tiny (small)" in told


@pytest.mark.usefixtures("store")
def test_train_plans_its_one_run(miniature: dict[str, Any], write_study: WriteStudy) -> None:
    with mlflow.start_run() as active:
        call(
            train,
            study=write_study(miniature),
            size="tiny",
            steps="7",
            plan="true",
        )
    run = mlflow.get_run(active.info.run_id)
    assert run.data.metrics["planned/flops"] == FLOPS["tiny"] * 7 * 8 * 32
    assert "planned/target_flops" not in run.data.metrics
    assert run.data.tags[keys.STAGE] != keys.PROXY


@pytest.mark.usefixtures("store")
def test_a_prepared_study_is_planned_from_its_tokens_and_trained_runs(
    miniature: dict[str, Any], write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study(miniature)
    study = studies.load(path)
    prepared = prepare(study)
    trained = proxy_runs(prepared)[0]
    with mlflow.start_run():
        mlflow.set_tags(
            {
                keys.STAGE: keys.PROXY,
                keys.COMPLETE: "true",
                keys.FINGERPRINT: fingerprint(trained),
            }
        )
    found = plan_sweep(path).data.metrics
    assert found["planned/runs_left"] == 7
    counts = {n: (f.train_tokens, f.validation_tokens) for n, f in prepared.corpus.domains.items()}
    assert found["planned/token_bytes"] == 2 * sum(sum(pair) for pair in counts.values())
    assert found["planned/epochs"] == pytest.approx(0.6 * 1.5 * TOKENS / counts["news"][0])
    told = capsys.readouterr().out
    assert "already trained: 1 run; 7 are left" in told
    assert "estimated" not in told


@pytest.mark.slow
@pytest.mark.usefixtures("shared_store")
@pytest.mark.parametrize("name", sorted(path.stem for path in studies.STUDIES.glob("*.yaml")))
def test_every_ready_made_study_is_planned_without_network_or_text(
    name: str, tmp_path: Path
) -> None:
    study = studies.load(name).model_copy(update={"workspace": tmp_path})
    basis = budget.basis(study)
    runs = proxy_runs(basis.prepared)
    with mlflow.start_run() as active:
        plan = dry_run.show(basis, runs, 8, 2e14, active, targets=True)
    assert not basis.exact
    assert plan.repeated is not None
    assert plan.repeated.epochs < study.repetition.limit
    assert plan.token_bytes is not None
    assert plan.token_bytes < 200e9
    count = study.sweep.mixtures
    mixtures = count if isinstance(count, int) else len(count)
    assert sum(row.runs for row in plan.rows) == len(study.sweep.sizes) * mixtures


@pytest.mark.parametrize(
    ("throughput", "plan", "message"),
    [
        ("fast", "true", "throughput: 'fast' is not a number"),
        ("-1", "true", "throughput: '-1'; it must be positive"),
        ("1e9", "false", "throughput: only plan=true uses it"),
        ("", "maybe", "plan: 'maybe' is neither true nor false"),
    ],
)
def test_a_bad_parameter_is_one_clear_error(
    throughput: str,
    plan: str,
    message: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
) -> None:
    study = write_study(miniature)
    with pytest.raises(InputError, match=message), mlflow.start_run():
        call(sweep, study=study, workers="1", plan=plan, throughput=throughput)
