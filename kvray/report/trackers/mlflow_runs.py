"""MLflow: a run per sweep, and one per finetune below it, in the experiment and at the server that MLflow is set to."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kvray.errors import InputError, first_line, need, without_logins
from kvray.report.trackers.content import Curve, Scores
from kvray.store.store import Store

EXPERIMENT = "kvray"
"""Unless ``$MLFLOW_EXPERIMENT_NAME`` or ``$MLFLOW_EXPERIMENT_ID`` names another one."""
BATCH = 1000
"""Most metrics that MLflow takes in one request."""
_DATABASES = ("sqlite", "mysql", "postgresql", "mssql")
_KEY, _DIGEST = "kvray.key", "kvray.digest"
_LONGEST = 500  # characters of a parameter, which older servers take
_PARAMETERS = 100  # most in one request


class MlflowRuns:
    """Runs are found by a tag, ``kvray.key``: what was sent whole is left alone, the rest is sent again."""

    def __init__(self, store: Store, sweep: str) -> None:
        """Open the tracking store; InputError if ``$MLFLOW_TRACKING_URI`` is none that can be opened here."""
        import mlflow

        if not os.environ.get("MLFLOW_LOGGING_LEVEL"):  # else it tells of every step of making a database
            logging.getLogger("mlflow").setLevel(logging.ERROR)
        self._uri = mlflow.get_tracking_uri()
        self._sweep = sweep
        self._experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or ""
        if urlsplit(self._uri).scheme.partition("+")[0] in _DATABASES:  # mlflow-skinny comes without
            need(f"MLflow's store {self.place}", "sqlalchemy", "alembic", extra="mlflow")
        try:
            self._client = mlflow.MlflowClient()
            if urlsplit(self._uri).scheme not in ("http", "https"):  # what is on this machine is opened now
                self._client.search_experiments(max_results=1)
        except Exception as error:  # any of MLflow's own, its database's, or the file system's
            raise InputError(
                f"runtime.trackers: mlflow cannot open {self.place}: {without_logins(first_line(error))}; expected, in "
                "MLFLOW_TRACKING_URI, a place that it can write to: the URL of a server, or sqlite:///mlflow.db"
            ) from error

    @property
    def place(self) -> str:
        return without_logins(self._uri)

    def finetune(self, curve: Curve) -> None:
        """Send a finetune's curves and hyperparameters, unless they are there whole."""
        from mlflow.entities import Metric

        found = self._run(curve.key)
        if found is not None and _DIGEST in found.data.tags:
            return
        if found is not None:  # it was sent in part: metrics that came twice would be there twice
            self._client.delete_run(found.info.run_id)
        parent = self._sweep_run(curve.sweep_key)
        began = round(1000 * (curve.times[0] if curve.times else time.time()))
        run = self._client.create_run(
            self._experiment_id(),
            start_time=began,
            tags={_KEY: curve.key, "mlflow.parentRunId": parent},
            run_name=curve.name,
        ).info.run_id
        self._parameters(run, curve.config)
        metrics = [
            Metric(name, value, round(1000 * at), step)
            for name, values in curve.series.items()
            for step, at, value in zip(curve.steps, curve.times, values, strict=True)
            if value is not None
        ]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(run, metrics=metrics[start : start + BATCH])
        self._client.set_tag(run, _DIGEST, "whole")
        self._client.set_terminated(run, end_time=round(1000 * curve.times[-1]) if curve.times else None)

    def scores(self, scores: Scores) -> None:
        """Send scores, figures and the sweep to the sweep's run; what is there already is replaced."""
        from mlflow.entities import Metric

        run = self._sweep_run(scores.key)
        data = self._client.get_run(run).data
        if data.tags.get(_DIGEST) == scores.digest:
            return
        now = round(1000 * time.time())
        values = {_metric(name): value for name, value in scores.values().items()}
        # A metric that is logged twice has two points.
        changed = [Metric(name, value, now, 0) for name, value in values.items() if data.metrics.get(name) != value]
        for start in range(0, len(changed), BATCH):
            self._client.log_batch(run, metrics=changed[start : start + BATCH])
        with tempfile.TemporaryDirectory(prefix="kvray-mlflow-") as folder:
            path = Path(folder)
            (path / "figures").mkdir()
            for name, png in scores.figures.items():
                (path / "figures" / f"{name}.png").write_bytes(png)
            (path / "sweep.yaml").write_text(scores.yaml)
            (path / "config.json").write_text(json.dumps(scores.config, indent=1))
            header, rows = scores.table()
            (path / "scores.json").write_text(
                json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1)
            )
            self._client.log_artifacts(run, folder)
        for name in ("base_model", "store", "kvray"):
            self._client.set_tag(run, f"kvray.{name}", str(scores.config[name]))
        self._client.set_tag(run, _DIGEST, scores.digest)
        self._client.set_terminated(run)

    def _sweep_run(self, key: str) -> Any:
        """Return the id of the sweep's run, which is made if there is none."""
        found = self._run(key)
        if found is None:
            found = self._client.create_run(self._experiment_id(), tags={_KEY: key}, run_name=self._sweep)
        return found.info.run_id

    def _run(self, key: str) -> Any:
        """Return the run of a key, None if there is none."""
        found = self._client.search_runs([self._experiment_id()], f"tags.`{_KEY}` = '{key}'", max_results=1)
        return found[0] if found else None

    def _experiment_id(self) -> str:
        if not self._experiment:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
            found = self._client.get_experiment_by_name(name)
            self._experiment = found.experiment_id if found else self._client.create_experiment(name)
        return self._experiment

    def _parameters(self, run: str, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:_LONGEST]) for name, value in _flat(config).items()]
        for start in range(0, len(params), _PARAMETERS):
            self._client.log_batch(run, params=params[start : start + _PARAMETERS])


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested values by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = _metric(f"{before}{name}")
        flat |= _flat(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat


def _metric(name: str) -> str:
    """Return a name with the characters alone that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)
