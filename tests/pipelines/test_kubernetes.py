"""The manifest for Kubernetes starts a sweep that exists, with what the project reads."""

from typing import Any

import pytest
import yaml
from mlflow import environment_variables

from pipelines import sweep
from pipelines.command import table
from pipelines.study.study import Study
from tests.support.commands import ROOT
from training.record.secrets import VARIABLES, masked

MANIFEST = ROOT / "docs" / "kubernetes.yaml"


@pytest.fixture
def documents() -> dict[str, dict[str, Any]]:
    """Kind → document."""
    return {one["kind"]: one for one in yaml.safe_load_all(MANIFEST.read_text())}


@pytest.fixture
def pod(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = documents["Job"]["spec"]["template"]["spec"]
    return spec


def test_each_pod_sweeps_the_study_of_the_config_map(
    documents: dict[str, dict[str, Any]], pod: dict[str, Any]
) -> None:
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "pipelines", "sweep"]
    given = vars(table.parser(sweep.Parameters, None).parse_args(container["args"]))
    parameters = table.read(sweep.Parameters, given)
    assert parameters.workers == str(container["resources"]["limits"]["nvidia.com/gpu"])
    places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(places) == {volume["name"] for volume in pod["volumes"]}
    folder, name = parameters.study.rsplit("/", 1)
    assert places["study"] == folder
    study = Study.model_validate(yaml.safe_load(documents["ConfigMap"]["data"][name]))
    assert str(study.workspace).startswith(places["shared"])
    assert study.ledger is not None
    assert study.ledger.startswith("postgresql://")
    assert documents["Job"]["spec"]["completions"] == documents["Job"]["spec"]["parallelism"]


def test_the_variables_are_read_and_the_secret_ones_come_from_a_secret(
    pod: dict[str, Any],
) -> None:
    (container,) = pod["containers"]
    for variable in container["env"]:
        name = variable["name"]
        assert name in VARIABLES or hasattr(environment_variables, name), name
        assert ("secretKeyRef" in variable.get("valueFrom", {})) == (
            name in VARIABLES or name == "MLFLOW_TRACKING_USERNAME"
        )
    text = MANIFEST.read_text()
    assert masked(text) == text  # no password in a URL
