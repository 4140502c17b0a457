"""Kills and Ctrl-C in the first minute of a first run: nothing hangs or outlives its parent."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from pipelines.command import processes
from tests.support.commands import PATIENCE, ROOT, run_entry, started, wait_for
from tests.support.studies import WriteStudy
from training.record import keys, sqlite_store
from training.workers.signals import INTERRUPTED

MAKE = (
    "import sys; from training.record import sqlite_store; sqlite_store.LOCK_SECONDS = 0.2; "
    "sqlite_store.create(sys.argv[1])"
)
PROGRESS = re.compile(
    r"repetition|tokenis|compiling|starting workers|run \d+ of|\d+%"
)  # of its own lines


@pytest.fixture
def no_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which DeepSpeed's kernel was never compiled: its empty cache."""
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def below(process: "subprocess.Popen[str]", word: str = "") -> list[psutil.Process]:
    """The processes below a command, or those of them whose command line holds a word."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if word in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for_process(process: "subprocess.Popen[str]", word: str, count: int = 1) -> None:
    wait_for(lambda: len(below(process, word)) >= count, process)


def all_end(children: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(children, timeout=60)
    return not alive


def interrupted(process: "subprocess.Popen[str]") -> None:
    """Ctrl-C: the terminal signals the command and what it started; one line is the answer."""
    children = below(process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    told = [line for line in errors.split("\n") if line and not line[0].isspace()]
    lines = [line.split("\r")[-1] for line in told if not PROGRESS.search(line)]
    command: Any = process.args
    assert lines == [f"{command[3]}: {INTERRUPTED}"]
    assert all_end(children)


@pytest.mark.long
@pytest.mark.slow
def test_ctrl_c_and_kill_while_the_kernel_compiles(
    store: str, miniature: dict[str, Any], write_study: WriteStudy, no_kernel: Path
) -> None:
    assert store
    command = ["train", "--study", write_study(miniature), "--size", "tiny"]

    def locks() -> list[Path]:
        return list(no_kernel.glob("**/lock"))  # PyTorch's

    process = started(*command)
    wait_for(locks, process)
    interrupted(process)
    assert locks()  # and nobody holds them

    process = started(*command)
    wait_for_process(process, "shm")  # the compiler
    children = below(process)
    process.kill()
    assert all_end(children)
    assert locks()

    done = run_entry(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "compiling DeepSpeed's CPU kernel (once per environment)" in done.stderr
    (lock,) = no_kernel.glob("**/deepspeed_shm_comm")
    (lock / "lock").touch()  # as a worker leaves it that is killed while it loads
    done = run_entry(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "compiling" not in done.stderr


@pytest.mark.slow
def test_a_kernel_that_does_not_compile_is_one_line(
    store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    no_kernel: Path,
    tmp_path: Path,
) -> None:
    assert store
    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *" -c "*) echo "error: no space left on device" >&2; exit 1;; '
        f'esac\nexec {shutil.which("c++")} "$@"\n'
    )
    compiler.chmod(0o755)
    command = ["train", "--study", write_study(miniature), "--size", "tiny"]
    done = run_entry(*command, env={"CXX": str(compiler)})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.rstrip().splitlines()[-1]
    assert "DeepSpeed's CPU kernel failed to compile: " in last
    assert "error: no space left on device" in last
    assert str(no_kernel) in last


@pytest.fixture(
    params=["1", pytest.param("2", marks=pytest.mark.long)], ids=["one_process", "two_processes"]
)
def ranks(request: pytest.FixtureRequest) -> str:
    """Processes a worker has: started by the parent itself, or by DeepSpeed's launcher."""
    return str(request.param)


@pytest.mark.slow
def test_workers_end_with_their_parent_and_are_started_again_when_they_die(
    store: str, miniature: dict[str, Any], write_study: WriteStudy, ranks: str
) -> None:
    assert store
    command = ["sweep", "--study", write_study(miniature), "--workers", "1", "--ranks", ranks]
    word = "forkserver" if ranks == "1" else "-m training.workers.rank_main"

    process = started(*command)
    wait_for_process(process, word)
    interrupted(process)  # while its workers start

    process = started(*command)
    wait_for_process(process, word, int(ranks))
    children = below(process)
    process.kill()
    assert all_end(children)

    process = started(*command)
    one = ranks == "1"  # it is forked from the process that imported the libraries
    wait_for_process(process, word, 2)
    children = below(process, word)[1 if one else 0 :]
    (children if one else below(process, "deepspeed.launcher.runner"))[0].kill()
    assert all_end(children)  # and it is started again
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors[-3000:]
    assert "started again (1 of 10)" in output
    assert not mlflow.search_runs(
        filter_string="attributes.status = 'RUNNING'", output_format="list"
    )


@pytest.mark.slow
def test_a_worker_that_is_not_up_in_time_ends_the_sweep(
    store: str, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    assert store
    miniature["engine"] = {"start_minutes": 0.001}
    done = run_entry("sweep", "--study", write_study(miniature), "--workers", "1")
    assert done.returncode == 1
    last = done.stderr.rstrip().splitlines()[-1]
    assert "worker-0 was not ready within 0.001 minutes (engine.start_minutes)" in last
    assert "Traceback" not in done.stderr


def tables(file: Path) -> int:
    if not file.exists():
        return 0
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
        except sqlite3.OperationalError:  # locked
            return 0


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["ours", "mlflow's"])
def test_a_kill_while_the_store_is_made_spoils_no_later_start(
    new_store: str, miniature: dict[str, Any], write_study: WriteStudy, tmp_path: Path, whose: str
) -> None:
    assert new_store
    prepare = ["prepare", "--study", write_study(miniature)]
    if whose == "ours":
        process = started(*prepare)
        pattern = ".mlflow.db.making/mlflow.db"
    else:
        code = "import mlflow; mlflow.search_experiments()"
        process = subprocess.Popen([sys.executable, "-c", code], text=True)
        pattern = "mlflow.db"
    wait_for(lambda: any(tables(file) > 30 for file in tmp_path.glob(pattern)), process)
    process.kill()
    process.communicate()
    if whose == "mlflow's":  # as a kill in the middle of a migration leaves it
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS _alembic_tmp_trace_tags (key)")
    done = run_entry(*prepare)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ("It holds no runs and was renamed" in done.stderr) == (whose == "mlflow's")
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FINISHED"
    assert not list(tmp_path.glob(".mlflow.db.*"))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["a registry without models", "another program's", "locked"])
def test_a_file_that_is_no_half_made_store_is_never_set_aside(tmp_path: Path, what: str) -> None:
    file, uri = tmp_path / "some.db", f"sqlite:///{tmp_path}/some.db"
    if what == "another program's":
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE mine (a integer)")
    else:
        client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/tracking.db", uri)
        client.search_registered_models()
    before = tables(file)
    assert before
    if what == "locked":
        mlflow.MlflowClient(uri, uri).create_registered_model("kept")
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            done = subprocess.run(
                [sys.executable, "-c", MAKE, uri], cwd=ROOT, capture_output=True, text=True
            )
        assert "InputError: MLflow's store 'sqlite:" in done.stderr
        assert "database is locked" in done.stderr
    else:
        sqlite_store.create(uri)
    assert tables(file) == before
    assert [p.name for p in tmp_path.glob("some.db*")] == ["some.db"]


@pytest.mark.slow
def test_runs_of_killed_processes_are_closed_and_of_others_are_not(
    store: str, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    assert store
    study = write_study(miniature)
    process = started("prepare", "--study", study)
    stages = f"tags.{keys.STAGE} = 'prepare'"
    (killed,) = wait_for(lambda: mlflow.search_runs(["0"], stages, output_format="list"), process)
    process.kill()
    process.communicate()
    with mlflow.start_run(run_name="of a living process") as living:
        processes.mark(living.info.run_id)
        assert run_entry("prepare", "--study", study).returncode == 0
        assert mlflow.get_run(living.info.run_id).info.status == "RUNNING"
    closed = mlflow.get_run(killed.info.run_id)
    assert closed.info.status == "KILLED"
    assert closed.data.tags[keys.ERROR] == "its process was killed"


def test_ctrl_c_while_libraries_load(
    store: str, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    assert store
    process = started("prepare", "--study", write_study(miniature))
    maps = Path(f"/proc/{process.pid}/maps")
    wait_for(lambda: "_ssl" in maps.read_text() or "_json" in maps.read_text(), process)
    interrupted(process)


@pytest.mark.slow
def test_an_interrupt_within_a_finaliser_is_not_lost() -> None:
    """Python drops what a finaliser raises."""
    code = """
import os, signal, time, weakref
from training.workers.signals import interrupt_on_signals

def last(_):
    os.kill(os.getpid(), signal.SIGTERM)

interrupt_on_signals()
held = set()
watch = weakref.ref(held, last)
try:
    del held
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
