"""Links to runs in MLflow, and what to start where no server is known."""

from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit, urlunsplit

import mlflow
from mlflow.entities import Run

from pipelines.command import advice
from training.record import markdown


@dataclass(frozen=True)
class Links:
    """Where runs are seen."""

    base: str  # the address of the server; empty if runs have no link
    command: str  # starts a server there; empty if one runs

    @classmethod
    def of_store(cls, run: Run) -> Self:
        """Links to the tracking server, or to one that the command for this run starts."""
        scheme, netloc, path, _, _ = urlsplit(mlflow.get_tracking_uri())
        if scheme in ("http", "https"):  # without a user and a password
            return cls(
                urlunsplit((scheme, netloc.rpartition("@")[2], path, "", "")).rstrip("/"), ""
            )
        if scheme == "databricks" or mlflow.get_tracking_uri() == "databricks":
            return cls("", "")
        return cls(advice.LOCAL, advice.look_at(run).partition("   then ")[0])

    def __call__(self, run: Run | None) -> str:
        """A run's address; empty if it has none."""
        return f"{self.base}/{markdown.run_page(run)}" if run and self.base else ""
