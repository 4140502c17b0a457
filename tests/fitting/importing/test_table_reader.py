"""Tables as other programs write them, and losses in other units, from import to search."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from fitting.data import histories
from fitting.importing import pair, table_reader
from optimization.domain import predictor as predictors
from tests.support.commands import ROOT, run_entry
from tests.support.tables import DATA, proxies, published, run_import, table, write_csv
from training.record import keys
from training.record.errors import InputError
from training.record.mlflow_runs import search

CASES = ROOT.parent / "shared" / "cases"
cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"no cases in {CASES}")
INDEX = "the index, which has no name"


def r_rows(t: pd.DataFrame, separator: str) -> str:
    """As R writes a table: names quoted, rows named, the header a field shorter."""
    lines = [separator.join(f'"{c}"' for c in t)]
    for i, row in enumerate(t.itertuples(index=False), 1):
        lines.append(separator.join([f'"{i}"', f'"{row[0]}"', *map(str, row[1:])]))
    return "\n".join(lines) + "\n"


def spreadsheet(t: pd.DataFrame) -> str:
    """As a spreadsheet saves it: semicolons, a byte order mark, an empty column and rows."""
    text = t.assign(**{c: t[c].astype(float) for c in ("tokens", "step")}).to_csv(
        sep=";", index=False, lineterminator="\r\n"
    )
    wide = "\r\n".join(f"{line};" for line in text.splitlines())
    return "\ufeff" + wide + "\r\n" + ";" * t.shape[1] + "\r\n\r\n"


def rare_types(t: pd.DataFrame) -> pd.DataFrame:
    """With categories, nullable integers and an index left by filtering."""
    return t.astype({"run": "category", "step": "Int64", "n_params": "UInt32"}).set_index(
        pd.Index([i * i for i in range(len(t))])
    )


def separator_at_the_end(t: pd.DataFrame) -> str:
    """With an empty field at the end of each row that the header lacks."""
    return t.to_csv(index=False, lineterminator=",\n").replace(",\n", "\n", 1)


Write = Callable[[pd.DataFrame, Path], Any]
WAYS: dict[str, tuple[Write, bool]] = {  # and whether an index is left out
    "pandas.csv": (lambda t, p: t.to_csv(p), True),
    "twice.csv": (lambda t, p: t.reset_index(names="Unnamed: 0").to_csv(p), True),
    "write_table.txt": (lambda t, p: p.write_text(r_rows(t, " ")), True),
    "write_table.tsv": (lambda t, p: p.write_text(r_rows(t, "\t")), True),
    "spreadsheet.csv": (lambda t, p: p.write_text(spreadsheet(t), newline=""), False),
    "small.csv.gz": (lambda t, p: p.write_bytes(gzip.compress(t.to_csv().encode())), True),
    "end.csv": (lambda t, p: p.write_text(separator_at_the_end(t)), False),
    "filtered.parquet": (lambda t, p: rare_types(t).to_parquet(p), True),
    "index.parquet": (lambda t, p: t.set_index(["run", "step"]).to_parquet(p), False),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_table_is_the_same_however_it_was_saved(way: str, tmp_path: Path) -> None:
    rows = table()
    plain = table_reader.tidy(write_csv(tmp_path / "plain.csv", rows))
    write, has_index = WAYS[way]
    path = tmp_path / way
    write(rows, path)
    found = table_reader.tidy(str(path))
    assert found.runs == plain.runs
    assert plain.runs[0].history.losses[0][0] == rows["val_loss/web"][0]  # to the last bit
    assert found.notes == ((f"left out of {path}: {INDEX}",) if has_index else ())


TIDY = "run,n_params,tokens,step,mixture/a,mixture/b,val_loss/a\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TIDY + "x,1,1,1,1,0,5\nx,1,2\n", "line 3: it has 3 fields and the header 7; was the file"),
        (TIDY + 'x,"1,000,000",1,1,1,0,5\n', "'n_params': '1,000,000' must be a number, such as"),
        (TIDY + "x,1,1,1,100%,0%,5\n", "'mixture/a': '100%' must be a number, such as 0.25 or 1e6"),
        (TIDY.replace(",", ";") + "x;1;1;1;1;0;5,25\n", "'val_loss/a': '5,25' must be a num"),
        (TIDY + "x,1,1,1,1,0,#DIV/0!\n", "'val_loss/a': '#DIV/0!' must be a number"),
        (TIDY + "x,1,1,1,1,0,1e400\n", "'val_loss/a': 1e400 must be a loss >= 0 and finite"),
        (TIDY + "x,1,1,1e19,1,0,5\n", "'step': 1e19 must be less than 9.2e+18"),
        (TIDY + "x,9223372036854775808,1,1,1,0,5\n", "'n_params': 9223372036854775808 must be"),
        (TIDY + f"{'x' * 251},1,1,1,1,0,5\n", "must name the run in 1 to 250 characters without"),
        (TIDY + '"x\ny",1,1,1,1,0,5\n', "'x\\ny' must name the run in 1 to 250 characters"),
        (TIDY.replace("step", "") + "x,1,1,1,1,0,5\n", "column 4 has no name; name or remove it"),
        (TIDY.replace("step", "Unnamed: 3") + "x,1,1,1,1,0,5\n", "column 4 has no name"),
        (TIDY.replace("/b", "/..") + "x,1,1,1,1,0,5\n", "column 'mixture/..': it, or a part of it"),
        (TIDY.replace("/b", "/ö💥") + "x,1,1,1,1,0,5\n", "column 'mixture/ö💥': it contains '💥'"),
        (TIDY + 'x,1,1,1,1,0,"5\n', "cannot be read as a table"),
        ("\n" + TIDY, "its first line must name the columns"),
        ("unit," + TIDY + "a b,x,1,1,1,1,0,5\n", "'a b' is not the name of a unit"),
        (
            "unit," + TIDY + "a,x,1,1,1,1,0,5\nb,x,1,2,2,1,0,5\n",
            "line 3, column 'unit': 'b' is not a: a table has losses of one unit",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_with_certainty_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        table_reader.tidy(str(path))
    assert message in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_encodings_and_types_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        (TIDY.replace("/b", "/é") + "x,1,1,1,1,0,5\n").encode("cp1252")
    )
    with pytest.raises(InputError, match=r"a.csv is not UTF-8 text \(.*\); save it as UTF-8"):
        table_reader.tidy(str(tmp_path / "a.csv"))
    for column, bad, text in (
        ("mixture/web", True, "True"),
        ("val_loss/web", pd.Timestamp("2024-01-02"), "2024-01-02 00:00:00"),
    ):
        table().assign(**{column: bad}).to_parquet(tmp_path / "a.parquet")
        with pytest.raises(InputError, match=f"row 1, column '{column}': '{text}' must be a num"):
            table_reader.tidy(str(tmp_path / "a.parquet"))
    table().set_index("run", drop=False).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="column 'run' appears twice"):
        table_reader.tidy(str(tmp_path / "a.parquet"))


MIXTURES = "run,run_id,index,name,web,code\na,1,0,p,0.5,0.5\na,2,1,q,0.25,0.75\n"
LOSSES = "run,run_id,index,name,web,note\na,2.0,0,q,3,good\na,1.0,2,p,4,bad\n"


def test_a_pair_is_joined_by_what_names_its_runs(tmp_path: Path) -> None:
    def paired(mixtures: str, losses: str) -> table_reader.RunTable:
        (tmp_path / "m.csv").write_text(mixtures)
        (tmp_path / "v.csv").write_text(losses)
        return pair.pair(str(tmp_path), 1, 1, [])

    found = paired(MIXTURES, LOSSES)  # `run` names no run, and 1.0 is the run 1
    assert {run.name: run.history.losses for run in found.runs} == {"1": ((4,),), "2": ((3,),)}
    columns = "column 'run', column 'index', column 'name', column 'note'"
    assert found.notes == (f"the files are joined by 'run_id'; left out: {columns}",)
    found = paired(MIXTURES, LOSSES.replace("2.0", "7.0"))
    assert "are joined by 'name'; left out: column 'run', column 'run_id'" in found.notes[0]
    with pytest.raises(
        InputError, match=r"v.csv, line 2, column 'val_loss/note': 'good' must be a number"
    ):
        paired(MIXTURES, LOSSES + "a,1,9,r,5,2\n")  # a third of `note` are numbers: not a text
    with pytest.raises(InputError, match=r"run, run_id, index or name, .* found 'run', 'name'"):
        paired("run,web,code\na,0.5,0.5\n", "name,web\na,3\n")


@pytest.mark.slow
@cases
@pytest.mark.parametrize(
    ("folder", "left_out"),
    [
        ("olmix", f"left out: {INDEX}, column 'name', column 'index'"),
        ("olmix2", "left out: column 'name', column 'index'"),
        ("olmix3", "left out: column 'name'"),
    ],
)
def test_published_layouts_are_imported_as_they_are(store: str, folder: str, left_out: str) -> None:
    assert store
    source = str(CASES / "03-olmix-pair" / folder)
    done = run_entry("import", "--format", "pair", "--source", source, "--experiment", "olmix")
    assert done.returncode == 0, done.stderr
    assert f"import: the files are joined by 'run'; {left_out}\n" in done.stdout
    runs = proxies("olmix")
    assert len(runs) == 24
    metrics = runs["a3a210b1"].data.metrics
    assert metrics["val_loss/codex_humaneval:3shot::none"] == 2.1423634983676103
    assert len([key for key in metrics if key.startswith("val_loss/")]) == 4


@pytest.mark.slow
@cases
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("10-tokens-overflow/hugetokens.csv", "line 2, column 'tokens': 1e+20 must be less than"),
        ("15-name-too-long/name_dotdot.csv", "column 'mixture/..': it, or a part of it between"),
        ("15-name-too-long/name_long.csv", "it has 260 characters; a domain's name has at most"),
    ],
)
def test_of_a_refused_import_nothing_is_left(store: str, case: str, message: str) -> None:
    assert store
    source = str(CASES / case)
    refused = run_entry("import", "--format", "tidy", "--source", source, "--experiment", "new")
    assert refused.returncode == 1
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("import: ")]
    assert source in line
    assert message in line
    assert mlflow.get_experiment_by_name("new") is None
    (left,) = search(["0"], "")
    assert (left.info.status, left.data.tags["stage"]) == ("FAILED", "import")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "bits/byte"}, "unit: 'bits/byte' is not the name of a unit: up to 40 letters"),
        ({"unit": "nats_per_token"}, "unit: nats_per_token, but the table's column 'unit' says bi"),
        ({"experiment": "x" * 257}, "is not the name of an experiment, which has 1 to 256"),
        ({"experiment": "a\nb"}, "experiment: 'a\\nb' is not the name of an experiment"),
    ],
)
def test_a_bad_unit_or_experiment_is_refused(
    store: str, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    assert store
    source = write_csv(tmp_path / "runs.csv", table().assign(unit="bits_per_byte"))
    with pytest.raises(InputError) as refused:
        run_import(source, "tidy", **options)
    assert message in str(refused.value)


def laws_losses(unit: str) -> pd.DataFrame:
    """Twelve made-up mixtures of two domains, one size, with losses that depend on them."""
    web = np.linspace(0.05, 0.95, 12)
    return pd.DataFrame(
        {
            "run": [f"{unit}-{i}" for i in range(12)],
            "n_params": 10**6,
            "tokens": 10**8,
            "step": 100,
            "mixture/web": web,
            "mixture/code": 1 - web,
            "val_loss/web": 1 + np.exp(-2 * web),
            "val_loss/code": 1 + np.exp(-3 * (1 - web)),
        }
    )


def experiment(name: str) -> str:
    """The id of an experiment."""
    return str(mlflow.get_experiment_by_name(name).experiment_id)


@pytest.mark.slow
def test_the_unit_goes_from_the_import_to_the_search(store: str, tmp_path: Path) -> None:
    assert store
    source = write_csv(tmp_path / "bits.csv", laws_losses("bits"))
    done = run_import(source, "tidy", experiment="mine", unit="bits_per_byte")
    run = proxies("mine")["bits-0"]
    parent = mlflow.get_run(done.data.tags["import_run"])
    assert run.data.params["unit"] == parent.data.params["loss_unit"] == "bits_per_byte"
    with pytest.raises(
        InputError, match=r"unit: 12 of these runs are .* imported in bits_per_byte"
    ):
        run_import(source, "tidy", experiment="mine")

    fitted = run_entry("fit", "--experiment", "mine", "--compare", "false", "--model", "bits")
    assert fitted.returncode == 0, fitted.stderr
    assert "; losses in bits/byte\n" in fitted.stdout
    predictor = predictors.load("models:/bits@champion")
    assert predictor.unit == predictor.loaded.metadata.metadata["unit"] == "bits_per_byte"
    found = run_entry("optimize", "--model", "models:/bits@champion", "--trials", "30")
    assert found.returncode == 0, found.stderr
    assert "bits/byte" in found.stdout
    assert "nats" not in fitted.stdout + found.stdout

    exported = run_entry("export", "--experiment", "mine", "--output", str(tmp_path / "out.csv"))
    assert exported.returncode == 0, exported.stderr
    run_import(tmp_path / "out.csv", "tidy", experiment="copy")
    assert histories.pull([experiment("copy")]).unit == "bits_per_byte"
    run_import(write_csv(tmp_path / "nats.csv", laws_losses("nats")), "tidy", experiment="mine")
    with pytest.raises(
        InputError, match=r"12 in (\w+) .*, 12 in (?!\1)(bits_per_byte|nats_p)"
    ) as mixed:
        histories.pull([experiment("mine")])
    assert "choose with runs=\"params.unit = 'bits_per_byte'\"" in str(mixed.value)
    assert histories.pull([experiment("mine")], "params.unit = 'bits_per_byte'")
    checked = run_entry("verify", "--model", "models:/bits@champion")
    assert "predicts bits/byte, but the study measures nats/token" in checked.stderr


@published
def test_the_swarm_of_olmix_is_read_as_published() -> None:
    found = pair.pair(str(DATA / "olmix"), 30 * 10**6, 3 * 10**9, [])
    assert (len(found.runs), len(found.runs[0].mixture), len(found.val_domains())) == (127, 24, 110)
    assert found.notes == (
        f"the files are joined by 'run'; left out: {INDEX}, column 'name', column 'index'",
    )
    rows = pd.read_csv(DATA / "olmix/dclm_metrics.csv", dtype=str)
    metrics = rows.set_index("run")[found.val_domains()].map(float)
    for run in found.runs:
        assert list(run.history.losses[0]) == metrics.loc[run.name].tolist()
        assert sum(run.mixture.values()) == pytest.approx(1, abs=1e-12)
    assert {run.unit for run in found.runs} == {keys.NATS}
