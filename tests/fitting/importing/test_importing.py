"""Import and export: each format, each mistake, twice, interrupted, and there and back."""

import re
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from fitting.data import histories
from fitting.data.histories import Guess
from fitting.importing import mixinglaws, pair, table_reader, writer
from pipelines import entry, export
from tests.benchmarks import stores
from tests.support.commands import ROOT, call, run_entry, take_ctrl_c
from tests.support.tables import DATA, proxies, published, run_import, table, write_csv
from training.record import keys
from training.record.errors import InputError
from training.record.history import History, history_from_tags
from training.record.mlflow_runs import search

RED_PAJAMA = "common_crawl,c4,github,arxiv,books,stackexchange,wikipedia"
REG_MIX = "train_the_pile_,metric/the_pile_,_val_loss"


@pytest.mark.slow
@published
def test_the_papers_logs_become_runs(store: str, tmp_path: Path) -> None:
    assert store
    folder = tmp_path / "logs"
    folder.mkdir()
    lines = (DATA / "mixinglaws/RedPajama/1B.txt").read_text()
    (folder / "1B.txt").write_text(lines)
    (folder / "proportions.txt").write_text("0.5-0.5\n")
    weights = DATA / "mixinglaws/valid_weight.json"
    done = run_import(folder, "mixinglaws", domains=RED_PAJAMA, weights=str(weights))
    assert done.data.metrics == {"runs_imported": 4, "runs_already_there": 0}
    assert float(done.data.params["weight/Github"]) == pytest.approx(0.0952932)
    runs = proxies()
    assert sorted(runs) == ["1B-5", "1B-8", "1B-997", "1B-999"]
    run = runs["1B-997"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["complete"] == run.data.tags["check"] == "true"
    assert run.data.tags[keys.PARENT] == done.info.run_id
    told = ("size", "mixture_id", "n_params", "tokens_per_step")
    assert [run.data.params[key] for key in told] == ["1B", "997", "805736448", str(4096 * 256)]
    mixture = keys.without_prefix("mixture/", run.data.params)
    assert list(mixture) == RED_PAJAMA.split(",")
    assert mixture["arxiv"] == pytest.approx(0.25, abs=1e-5)
    assert sum(mixture.values()) == pytest.approx(1, abs=1e-12)
    series = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val_loss/Github")
    observed = {m.step: m.value for m in series}
    (want,) = {
        line.split("\t")[2]
        for line in lines.splitlines()
        if "_997-" in line and "/100000\t" in line and "Github" in line
    }
    assert observed[100_000] == float(want)
    pulled = histories.pull(["0"])
    assert pulled.left_out == {"1B-997": "check run", "1B-999": "check run"}
    assert set(pulled.table["run"].map(pulled.names)) == {"1B-5", "1B-8"}
    assert histories.purpose(pulled.parents).weights["PG19"] == pytest.approx(0.0185185, abs=1e-6)


BASE = "pythia_70m_step20000"


@pytest.mark.slow
@published
def test_continued_runs_are_told_from_the_model_before(store: str) -> None:
    assert store
    options = {"domains": "pile,python", "experiment": "ct", "check": "70M-9"}
    done = run_import(DATA / "mixinglaws/ct", "mixinglaws", **options)
    runs = proxies("ct")
    assert sorted(runs) == ["70M-0", "70M-1", "70M-2", "70M-3", "70M-9"]
    assert [name for name, run in runs.items() if keys.CHECK in run.data.tags] == ["70M-9"]
    assert "val_loss/python" in runs["70M-1"].data.metrics
    parent = mlflow.get_run(done.data.tags["import_run"])
    assert parent.info.experiment_id == runs["70M-0"].info.experiment_id
    assert "23 lines of pythia_70m_step20000" in parent.data.tags["mlflow.note.content"]
    assert {run.data.tags[keys.PARENT] for run in runs.values()} == {parent.info.run_id}

    run_import(DATA / "mixinglaws/ct", "mixinglaws", **options | {"experiment": "begun"}, base=BASE)
    base = {
        line.split("\t")[1].split(".")[-2]: float(line.split("\t")[2])
        for line in (DATA / "mixinglaws/ct/70M.txt").read_text().splitlines()
        if BASE in line and "python" not in line
    }
    for name, run in proxies("begun").items():
        begun = history_from_tags(run.data.tags)
        alone = history_from_tags(runs[name].data.tags)
        assert begun is not None
        assert alone is not None
        assert (begun.steps, begun.tokens) == ((0, *alone.steps), (0, *alone.tokens))
        at_start = dict(zip(begun.domains, begun.losses[0], strict=True))
        assert {domain: at_start[domain] for domain in base} == pytest.approx(base, rel=1e-8)
        assert run.data.params["tokens_per_step"] == str(4096 * 256)
    with pytest.raises(InputError, match="base: no line of 'none'; checkpoints that are not mixt"):
        mixinglaws.logs(str(DATA / "mixinglaws/ct"), ["pile", "python"], {}, "none")


@published
def test_all_published_logs_and_the_pair_of_regmix_are_read(tmp_path: Path) -> None:
    found = mixinglaws.logs(str(DATA / "mixinglaws/RedPajama"), RED_PAJAMA.split(","), {})
    assert len(found.runs) == 107
    assert sum(run.check for run in found.runs) == 5
    assert len(found.val_domains()) == 22
    assert len({run.n_params for run in found.runs}) == 5
    assert all(abs(sum(run.mixture.values()) - 1) < 1e-12 for run in found.runs)

    losses = pd.read_csv(DATA / "regmix/train_pile_loss_1m.csv", dtype={"index": str})
    shuffled = write_csv(tmp_path / "a.csv", losses.sample(frac=1, random_state=0))
    source = f"{shuffled},{DATA / 'regmix/train_mixture_1m.csv'}"
    found = pair.pair(source, 10**6, None, REG_MIX.split(","))
    assert len(found.runs) == 512
    assert "47 of 512 mixtures sum to 0.996 … 1.003, as rounding to 3 decimals" in found.notes[0]
    assert "tokens of the runs: not known, taken as 1" in found.notes[1]
    row = losses.set_index("index").loc["17"]
    (run,) = (run for run in found.runs if run.name == "17")
    assert run.history.domains[0] == "arxiv"
    assert run.history.losses[0][0] == row["metric/the_pile_arxiv_val_loss"]
    assert (run.n_params, run.history.tokens) == (10**6, (1,))


@pytest.mark.slow
def test_importing_twice_adds_nothing_and_other_content_is_refused(
    store: str, tmp_path: Path
) -> None:
    assert store
    rows = table()
    source = write_csv(tmp_path / "runs.csv", rows)
    weights = '{"web": 1, "c.d": 0}'
    run_import(source, "tidy", weights=weights)
    ids = {run.info.run_id for run in proxies().values()}
    again = run_import(write_csv(tmp_path / "other.csv", rows[::-1]), "tidy", weights=weights)
    assert again.data.metrics == {"runs_imported": 0, "runs_already_there": 3}
    assert {run.info.run_id for run in proxies().values()} == ids
    with pytest.raises(InputError, match=r"weights: 3 of these runs .* with other weights"):
        run_import(source, "tidy", weights="web=1,c.d=1")
    rows.loc[3, "val_loss/web"] += 0.1
    with pytest.raises(InputError, match=r"other content for 1 of these runs \(01\); delete them"):
        run_import(write_csv(tmp_path / "runs.csv", rows), "tidy", weights=weights)


def statuses() -> Counter[str]:
    """How many proxy runs of the store have each status."""
    return Counter(run.info.status for run in search(["0"], "tags.stage = 'proxy'"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_import_goes_on(store: str, tmp_path: Path, number: int) -> None:
    assert store
    source = write_csv(tmp_path / "runs.csv", table(200))
    with entry.stage("first"):  # makes the store's tables
        pass
    command = [sys.executable, "-m", "pipelines", "import", "--source", source, "--format", "tidy"]
    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=take_ctrl_c
    ) as begun:
        while statuses()["FINISHED"] < 3:
            assert begun.poll() is None
        begun.send_signal(number)
        told = begun.communicate()[1]
    states = statuses()
    assert 3 <= states["FINISHED"] < 200
    if number == signal.SIGINT:
        assert "import: interrupted; run the command again to resume" in told
        assert states.keys() <= {"FINISHED", "KILLED"}
        (left,) = search(["0"], "tags.stage = 'import'")
        assert (begun.returncode, left.info.status) == (1, "KILLED")
    else:  # nothing can end a run then but the next import
        client = mlflow.MlflowClient()
        client.update_run(proxies()["00"].info.run_id, status="RUNNING")
        states = statuses()
    again = run_import(source, "tidy")
    assert again.data.metrics["runs_already_there"] == states["FINISHED"]
    after = statuses()
    assert after["FINISHED"] == 200
    assert after["KILLED"] == after.total() - 200 == states["RUNNING"] + states["KILLED"]
    pulled = histories.pull(["0"])
    assert pulled.table["run"].nunique() == 200
    assert set(pulled.left_out.values()) <= {"status KILLED"}
    for label in pulled.left_out:  # other runs have their names
        assert re.fullmatch(r"0\d+-[0-9a-f]{8}", label)


@pytest.mark.slow
def test_where_the_store_refuses_a_run_none_stays_running(store: str, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "runs.csv", table(6))
    with entry.stage("first"):
        pass
    with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON metrics WHEN NEW.key LIKE 'val_loss/%' AND "
            "(SELECT count(*) FROM tags WHERE key = 'stage' AND value = 'proxy') > 3 "
            "BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        )
    failed = run_entry("import", "--source", source, "--format", "tidy")
    assert failed.returncode == 1
    assert "the disk is full" in failed.stderr
    states = statuses()
    assert states["FINISHED"] == 3
    assert states["FAILED"] == states.total() - 3 > 0
    (left,) = search(["0"], "tags.stage = 'import'")
    assert left.info.status == "FAILED"
    for run in search(["0"], "tags.stage = 'proxy' and attributes.status = 'FAILED'"):
        assert "the disk is full" in run.data.tags["error"]
    with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
        database.execute("DROP TRIGGER full")
    assert run_import(source, "tidy").data.metrics["runs_imported"] == 3
    assert statuses() == {"FINISHED": 6, "FAILED": states["FAILED"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["runs.csv", "runs.parquet"])
def test_exported_and_imported_runs_are_the_same(store: str, tmp_path: Path, name: str) -> None:
    assert store
    rows = table()
    rows.loc[[1, 2], "val_loss/c.d"] = np.nan  # a missing loss stays missing
    rows.loc[0, ["step", "tokens"]] = 0  # of a base
    rows["accuracy/web"] = np.linspace(0.25, 0.5, len(rows))
    rows.loc[3, "accuracy/web"] = np.nan
    of_task = {"chance/web": 0.25, "questions/web": 400}
    run_import(write_csv(tmp_path / "first.csv", rows.assign(**of_task)), "tidy")
    (tmp_path / "first.csv").unlink()
    with entry.stage(keys.EXPORT) as active:
        call(export, runs="params.n_params != '3000000'", output=name)
    run_import(tmp_path / name, "tidy", experiment="copy")
    assert mlflow.get_experiment_by_name("copy")

    def pulled(experiment: str, runs: str = "") -> pd.DataFrame:
        found = histories.pull(entry.experiment_ids(experiment, active), runs)
        assert found.guesses == {"web": Guess(0.25, 400)}
        tidy = found.table.assign(run=found.table["run"].map(found.names))
        return tidy.sort_values(["run", "step"], ignore_index=True)

    copy = pulled("copy")
    pd.testing.assert_frame_equal(copy, pulled("Default", "params.n_params != '3000000'"), rtol=0)
    pd.testing.assert_frame_equal(
        copy[list(rows)], rows[rows["n_params"] != 3e6], check_dtype=False, rtol=1e-8
    )


@pytest.mark.slow
def test_histories_without_a_compact_copy_keep_missing_losses(store: str, tmp_path: Path) -> None:
    assert store
    rows = table()
    rows.loc[0, "val_loss/web"] = np.nan
    run_import(write_csv(tmp_path / "runs.csv", rows), "tidy")
    compact = histories.pull(["0"]).table
    client = mlflow.MlflowClient()
    first = proxies()["00"]
    assert '"losses":[[null,' in first.data.tags["history/0"]
    series = client.get_metric_history(first.info.run_id, "val_loss/web")
    assert [metric.step for metric in series] == [200]
    for run in proxies().values():
        client.delete_tag(run.info.run_id, f"{keys.HISTORY}0")
    bare = histories.pull(["0"]).table
    pd.testing.assert_frame_equal(bare[list(compact)], compact, rtol=1e-8)
    assert bare["val_loss/web"].isna().sum() == 1


def spoil(column: str, row: int, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(rows: pd.DataFrame) -> pd.DataFrame:
        rows[column] = rows[column].astype(object)
        rows.loc[row, column] = value
        return rows

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil("val_loss/web", 1, -1), "line 3, column 'val_loss/web': -1 must be a loss >= 0"),
        (spoil("val_loss/web", 1, "inf"), "line 3, column 'val_loss/web': inf must be a loss >= 0"),
        (spoil("val_loss/web", 1, "x"), "line 3, column 'val_loss/web': 'x' must be a number"),
        (spoil("tokens", 0, 0), "line 2, column 'tokens': 0 must be more than 0 after step 0"),
        (spoil("n_params", 0, 0.5), "line 2, column 'n_params': 0.5 must be a whole number"),
        (spoil("step", 5, -1), "line 7, column 'step': -1 must be a whole number of at least 0"),
        (spoil("step", 1, 100), "line 3, column 'step': 100.0 appears twice for its run"),
        (spoil("tokens", 1, 102400), "line 3, column 'tokens': 102400.0 appears twice for its run"),
        (lambda t: t.assign(**{"accuracy/web": 0.5}), "needs a column 'chance/web' beside it"),
        (
            lambda t: t.assign(**{"accuracy/web": 1.5, "chance/web": 0.2, "questions/web": 9}),
            "line 2, column 'accuracy/web': 1.5 must be a number from 0 to 1",
        ),
        (spoil("run", 2, None), "line 4, column 'run': an empty cell must name the run"),
        (spoil("mixture/web", 2, None), "line 4, column 'mixture/web': an empty cell must be a"),
        (spoil("mixture/web", 2, 0.1), "line 4: the proportions of run '01' sum to 1.0"),
        (spoil("n_params", 3, 9e6), "line 5, column 'n_params': 9000000.0 is not what the first"),
        (lambda t: t.drop(columns="step"), "no column 'step'; a tidy table has run, n_params,"),
        (lambda t: t.rename(columns={"mixture/web": "web"}), "unknown column 'web'; a tidy"),
        (
            lambda t: t.rename(columns={"val_loss/web": "val_loss/c++"}),
            "'val_loss/c++': it contains '+'",
        ),
        (lambda t: t.rename(columns={"val_loss/web": "val_loss/c.d"}), "'val_loss/c.d' appears"),
        (lambda t: t.head(0), "it has no rows"),
    ],
)
def test_a_bad_tidy_table_is_refused_by_place_and_rule(
    change: Callable[[pd.DataFrame], pd.DataFrame], message: str, tmp_path: Path
) -> None:
    path = write_csv(tmp_path / "runs.csv", change(table()))
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        table_reader.tidy(path)
    assert path in str(refused.value)


MIXTURES = "index,web,code\na,0.5,0.5\nb,0.25,0.75\n"
LOSSES = "index,val_loss/web,val_loss/code\nb,2,3\na,4,5\n"


@pytest.mark.parametrize(
    ("mixtures", "losses", "message"),
    [
        (MIXTURES + "b,1,0\n", LOSSES, "m.csv, line 4: run 'b' appears twice"),
        (MIXTURES, LOSSES + "c,1,1\n", "1 runs are in {v} but not in {m}: c; remove or complete"),
        (
            MIXTURES,
            LOSSES.replace("index", "id"),
            "both need the same column, run, run_id, index or name",
        ),
        (MIXTURES.replace("0.75", "0.5"), LOSSES, "m.csv, line 3: the proportions of run 'b' sum"),
        (MIXTURES.replace("code", "x_web"), LOSSES, "strip: it leaves 'web' of column 'x_web'"),
        (
            LOSSES.replace("val_loss/", ""),
            LOSSES,
            "do not sum to 1, so mixtures and losses cannot be told apart",
        ),
        (MIXTURES, LOSSES + "a,6,7\n", "v.csv, line 4, column 'step': 1 appears twice"),
    ],
)
def test_a_bad_pair_is_refused(mixtures: str, losses: str, message: str, tmp_path: Path) -> None:
    m, v = tmp_path / "m.csv", tmp_path / "v.csv"
    m.write_text(mixtures)
    v.write_text(losses)
    with pytest.raises(InputError, match=re.escape(message.format(m=m, v=v))):
        pair.pair(str(tmp_path), 1, 1, ["x_"])


def test_a_pair_is_joined_by_value_whatever_its_order(tmp_path: Path) -> None:
    losses = LOSSES.replace("4,5", "0.4,0.6").replace("2,3", "0.5,0.5")  # they sum to 1 too
    losses = losses.replace("\n", ",10\n").replace("code,10", "code,tokens")
    (tmp_path / "a.csv").write_text(losses)
    (tmp_path / "b.csv").write_text(MIXTURES)
    found = pair.pair(f"{tmp_path}/a.csv, {tmp_path}/b.csv", 5, None, [])
    runs = {run.name: run for run in found.runs}
    assert runs["a"].mixture == {"web": 0.5, "code": 0.5}
    assert runs["a"].history == History(("web", "code"), (1,), (10,), ((0.4, 0.6),))
    assert found.notes == ()


@pytest.mark.parametrize(
    ("log", "name", "run"),
    [
        ("70M", "160M_RP_3", "160M-3"),
        ("70M", "160M_a_b_3", "160M-3"),
        ("70M", "1B_999", "1B-999"),
        ("70M", "30", "70M-30"),
    ],
)
def test_a_checkpoints_name_tells_size_and_mixture(
    log: str, name: str, run: str, tmp_path: Path
) -> None:
    line = f"/c//{name}-0.75-0-2.5e-1/2000\t/d.valid.x//a.valid.Pile-CC.bin\t3.5\n"
    (tmp_path / f"{log}.txt").write_text(line + line + "\n")
    (tmp_path / "model.pt").write_bytes(b"a\tb\tc\n\0\xff")
    found = mixinglaws.logs(str(tmp_path), ["a", "b", "c"], {})
    (read,) = found.runs
    assert (read.name, read.check) == (run, "999" in run)
    assert read.mixture == {"a": 0.75, "b": 0, "c": 0.25}
    assert read.history == History(("Pile-CC",), (2000,), (2000 * 2**20,), ((3.5,),))
    assert found.notes == ("skipped model.pt: no line of tab-separated checkpoint, data and loss",)


CHECKPOINT = "/ckpts//70M_x_{}/{}\t/data/a.valid.{}.bin\t{}\n"


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("70M_x_1-0.5-0.5\n", "no line of tab-separated checkpoint, data and loss"),
        (CHECKPOINT.format("1-0.5-0.5", 10, "b", 2) + "cut\toff\n", "line 2: must be checkpoint"),
        (CHECKPOINT.format("1-0.5-0.5", 10, "b", "x"), "line 1: loss 'x' must be a number >= 0"),
        (CHECKPOINT.format("1-0.5-0.5", 10, "b", -1), "line 1: loss '-1' must be a number >= 0"),
        (CHECKPOINT.format("1-0.5-0.25-0.25", 10, "b", 1), "domains: give 3 names, comma-separ"),
        (CHECKPOINT.format("1-0.5-0.4", 10, "b", 1), "the proportions of run '70M-1' sum to 0.9;"),
        (CHECKPOINT.format("1-0.5-0.5", 10, "b", 1).replace("70M", "2B"), "Give 2B=…; known: 70M"),
        (
            CHECKPOINT.format("1-0.5-0.5", 10, "b", 1)
            + "".join(f"/base\t/a.valid.b.bin\t{x}\n" for x in (3, 4)),
            "line 3: loss 4.0, but 3.0 in ",
        ),
        (
            "".join(CHECKPOINT.format("1-0.5-0.5", 10, "b", x) for x in (1, 1, 2)),
            "line 3: loss 2.0, but 1.0 in ",
        ),
    ],
)
def test_a_bad_log_is_refused_by_file_and_line(log: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "70M.txt"
    path.write_text(log)
    with pytest.raises(InputError, match=re.escape(message)):
        mixinglaws.logs(str(path), ["a", "b"], {}, "base" if "/base" in log else "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "yaml"}, "format: 'yaml'; it is tidy, pair, mixinglaws"),
        ({"strip": "x"}, "strip: format tidy takes"),
        ({"weights": "web=1,cod=1"}, "weights: unknown domain 'cod'; known: web, c.d"),
        ({"weights": "web=1"}, "weights: no weight for c.d; give 0 to ignore a domain"),
        ({"check": "7"}, "check: no run '7'"),
        ({"source": "none.csv"}, "none.csv cannot be read as a table"),
    ],
)
def test_a_bad_parameter_is_named(
    store: str, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    assert store
    source = write_csv(tmp_path / "runs.csv", table())
    given = {"source": source, "form": "tidy", "experiment": "other", **options}
    with pytest.raises(InputError, match=re.escape(message)):
        run_import(**given)
    assert mlflow.get_experiment_by_name("other") is None


def test_a_run_of_many_metrics_is_written_whole(store: str) -> None:
    assert store
    domains = tuple(f"domain{i}" for i in range(120))
    losses = tuple(tuple(s + i / 128 for i in range(120)) for s in range(1, 16))
    run = table_reader.ImportedRun(
        "wide",
        10**6,
        dict.fromkeys(domains, 1 / 120),
        History(domains, tuple(range(1, 16)), tuple(range(10, 160, 10)), losses),
    )
    writer.write([run], writer.Parent("0", "0" * 32, "made up"))
    done = proxies()["wide"]
    assert len(keys.without_prefix(keys.MIXTURE, done.data.params)) == 120
    series = mlflow.MlflowClient().get_metric_history(done.info.run_id, "val_loss/domain119")
    assert [m.value for m in series] == [row[119] for row in losses]
    assert histories.pull(["0"]).table["val_loss/domain119"].tolist() == [r[119] for r in losses]


@pytest.mark.slow
@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "http"])
def test_histories_are_the_same_from_every_store_and_from_tags_or_metrics(kind: str) -> None:
    with stores.opened(kind):
        client = mlflow.MlflowClient()
        experiment = client.create_experiment("pull")
        runs = stores.made_up_runs(3, 4, 5)
        writer.write(runs, writer.Parent(experiment, "0" * 32, "made up"))
        for status in ("RUNNING", "FAILED"):
            tags = {keys.STAGE: keys.PROXY}
            run = client.create_run(experiment, tags=tags, run_name=status.lower())
            client.update_run(run.info.run_id, status=status)
        pulled = histories.pull([experiment])
        assert pulled.left_out == {"running": "status RUNNING", "failed": "status FAILED"}
        losses = pulled.table.filter(like=keys.VAL_LOSS)
        wanted = {run.name: run.history.losses for run in runs}
        for run_id, rows in losses.groupby(pulled.table["run"]):
            assert rows.to_numpy() == pytest.approx(np.array(wanted[pulled.names[run_id]]))
        for run_id in pulled.table["run"].unique():
            client.delete_tag(run_id, f"{keys.HISTORY}0")
        again = histories.pull([experiment]).table
        assert again["run"].tolist() == pulled.table["run"].tolist()
        assert again[list(losses)].to_numpy() == pytest.approx(losses.to_numpy(), abs=1e-8)


@pytest.mark.slow
def test_of_two_imports_at_once_the_second_finds_what_the_first_wrote(
    store: str, tmp_path: Path
) -> None:
    source = write_csv(tmp_path / "runs.csv", table(40))
    assert store
    assert not statuses()
    command = [sys.executable, "-m", "pipelines", "import", "--source", source, "--format", "tidy"]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    assert statuses() == {"FINISHED": 40}
