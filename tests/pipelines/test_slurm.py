"""A sweep as a Slurm job array, on a real cluster of two nodes: through kills, and mistakes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow
import psutil
import pytest
from mlflow.entities import Run

from pipelines import sweep
from tests.benchmarks import stores
from tests.support import postgres, slurm
from tests.support.commands import ROOT, call, run_entry, take_ctrl_c
from tests.support.studies import WriteStudy
from training.record import keys
from training.record.errors import InputError
from training.record.history import history_from_tags

PATIENCE = 240  # seconds, for a busy machine


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    """Slurm, empty at the end; tests skip where it cannot be started."""
    if reason := slurm.reason_not_to_start():
        pytest.skip(reason)
    with slurm.cluster() as found:
        yield found


def started(*parameters: str) -> "subprocess.Popen[str]":
    """A sweep that goes on in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", "sweep", *parameters],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=take_ctrl_c,
    )


def wait_for(what: Callable[[], Any], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def complete() -> list[Run]:
    return mlflow.MlflowClient().search_runs(["0"], "tags.complete = 'true'")


def histories(runs: list[Run]) -> dict[str, Any]:
    return {run.info.run_name: history_from_tags(run.data.tags) for run in runs}


@pytest.mark.slow
def test_an_array_trains_every_proxy_once_whatever_happens_to_its_tasks(
    cluster: slurm.Cluster,
    server: postgres.Server,
    store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert store
    miniature["training"] |= {"steps": 300, "evaluations": 3}
    miniature["engine"] = {"checkpoint_minutes": 0}
    study = write_study({**miniature, "ledger": server.database()})
    with stores.http(tmp_path) as tracking:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
        mlflow.set_tracking_uri(tracking)
        given = (f"--study={study}", "--launcher=slurm", "--workers=2", "--sbatch=--time=10:00")
        first = started(*given)
        wait_for(lambda: complete() and len(cluster.tasks()) == 2, first)
        (array,) = set(cluster.arrays())
        shown = [" ".join(process.cmdline()) for process in psutil.process_iter()]
        shown.append(slurm.slurm("scontrol", "show", "job", "--details"))

        # the command is killed and starts again; both tasks are told that their time is over
        os.killpg(first.pid, signal.SIGKILL)
        shown += first.communicate()
        slurm.slurm("scancel", "--signal=USR1", "--batch", array)
        before = len(complete())
        again = started(*given)
        wait_for(lambda: len(complete()) > before, again)

        # one task is cancelled: the other one trains what is left
        slurm.slurm("scancel", f"{array}_1")
        shown += again.communicate(timeout=PATIENCE)
        assert again.returncode == 0, shown[-1][-3000:]
        assert f"array {array} of this sweep is in the queue already, with 2 tasks" in shown[-1]
        assert "sweep: all 8 runs are done" in shown[-2]
        assert not cluster.tasks()
        told = slurm.slurm("scontrol", "show", "job")
        assert told.count("Restarts=1") == 2
        assert {word for word in told.split() if word.startswith("ArrayJobId")} == {
            f"ArrayJobId={array}"
        }

        # every proxy is trained once, as this machine alone trains it
        by_slurm = complete()
        assert len(histories(by_slurm)) == len(by_slurm) == 8
        assert not mlflow.MlflowClient().search_runs(["0"], "attributes.status = 'RUNNING'")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "alone")
        alone = run_entry("sweep", f"--study={study}", "--workers=2")
        assert alone.returncode == 0, alone.stderr[-3000:]
        place = mlflow.get_experiment_by_name("alone").experiment_id
        here = mlflow.MlflowClient().search_runs([place], f"tags.{keys.COMPLETE} = 'true'")
        assert histories(here) == histories(by_slurm)

    files = list(Path(miniature["workspace"], "slurm").iterdir())
    assert len(files) == 3  # the job and a log for each task
    shown += [path.read_text() for path in files]
    for text in shown:
        assert postgres.PASSWORD not in text
        assert quote(postgres.PASSWORD, safe="") not in text


@pytest.mark.slow
def test_ctrl_c_cancels_the_array(
    cluster: slurm.Cluster, store: str, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    assert store
    later = "--sbatch=-p one --begin=now+1hour"  # one node may have SQLite
    process = started(f"--study={write_study(miniature)}", "--launcher=slurm", "--workers=3", later)
    wait_for(lambda: len(cluster.tasks()) == 3, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert "sweep: interrupted; run the command again to resume" in errors
    assert not cluster.tasks()


@pytest.mark.slow
def test_tasks_that_fail_say_why(
    cluster: slurm.Cluster,
    store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    tmp_path: Path,
) -> None:
    assert store
    assert cluster
    tools = tmp_path / "tools"  # all that the nodes have: no compiler
    tools.mkdir()
    for name in ("sbatch", "squeue", "sinfo", "scancel", "scontrol", "bash"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    study = f"--study={write_study(miniature)}"
    given = (study, "--launcher=slurm", "--workers=1", "--sbatch=--partition=one")
    done = run_entry("sweep", *given, env={"PATH": str(tools), "CXX": ""})
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("sweep: the tasks of Slurm have ended and 8 runs not trained (")
    assert ".log: 'no C++ compiler (c++ or g++) on the PATH: DeepSpeed compiles a kernel" in last


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sbatch": "-p none"}, "sbatch: invalid partition specified: none; allocation failure:"),
        ({"sbatch": "--gpux=1 -p one"}, "sbatch: unrecognized option '--gpux=1'; Try "),
        ({"sbatch": "--nodes=3 -p one"}, "sbatch: allocation failure: Requested node configurat"),
        ({"sbatch": "--array 0-3"}, "sbatch: leave --array out, which the sweep needs itself"),
        ({"sbatch": "-Jmine"}, "sbatch: leave --job-name out"),
        ({"sbatch": "'half"}, 'sbatch: "\'half": No closing quotation'),
        ({"workers": "auto"}, "workers: give the number of tasks of Slurm's job array, such as wo"),
        ({"workers": "0"}, "workers: '0' is not an integer from 1"),
        ({"launcher": "local"}, "sbatch: these are options for launcher=slurm; give that too"),
        ({"launcher": "slurn"}, "launcher: 'slurn'; it is local, slurm"),
        ({"sbatch": ""}, "launcher: Slurm has 2 nodes for these tasks (n1, n2), and SQLite files"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_prepared(
    given: dict[str, str],
    message: str,
    cluster: slurm.Cluster,
    store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
) -> None:
    assert store
    standard = {"launcher": "slurm", "workers": "2", "sbatch": "--partition=one"}
    with mlflow.start_run(), pytest.raises(InputError) as caught:
        call(sweep, study=write_study(miniature), **{**standard, **given})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not Path(miniature["workspace"]).exists()
    assert not cluster.tasks()


def test_without_slurm_one_line_says_so_and_a_plan_needs_none(
    store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert store
    monkeypatch.setenv("PATH", str(tmp_path))
    given = {"study": write_study(miniature), "launcher": "slurm", "workers": "7"}
    with (
        mlflow.start_run(),
        pytest.raises(InputError, match=r"^launcher: sinfo is not on the PATH"),
    ):
        call(sweep, **given)
    with mlflow.start_run():
        call(sweep, **given, plan="true", throughput="1e9")
    assert "with 7 workers about" in capsys.readouterr().out
