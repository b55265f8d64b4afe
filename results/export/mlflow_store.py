"""An MLflow store: a run for the sprint, and nested below it one for each training.

NaN is kept; infinities become the largest finite double, as MLflow's SQL stores have it. Times are those of the
experiment. The client is used directly, so that MLflow looks at no repository, notebook or environment.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

from results.export.names import metric_name, plain
from results.export.steps import Steps
from results.export.tracker import ExportError, Point, RunInfo, Scalar, State, Training

EXPERIMENT = "labsandbox"
_OURS = "labsandbox.run"
_BATCH = 500
_EVERY = 2.0
_STATUS: dict[State, str] = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


class MlflowStore:
    """A SQLite file below `out`, unless `online` and MLFLOW_TRACKING_URI name another store."""

    def __init__(self, out: Path, online: bool) -> None:
        os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", GIT_PYTHON_REFRESH="quiet")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its own seven take minutes
        named = os.environ.get("MLFLOW_TRACKING_URI") if online else None
        folder = out.absolute()
        if named is None and any(one in str(folder) for one in "?#%"):
            raise ExportError(f"{folder} cannot be part of an SQLite address: choose --out without ?, # and %")
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        if named is None:
            folder.mkdir(parents=True, exist_ok=True)
        self.where = named or f"sqlite:///{folder / 'mlflow.db'}"
        with nullcontext() if named else _alone(folder):
            self._client: Any = MlflowClient(tracking_uri=self.where)
            found = self._client.get_experiment_by_name(EXPERIMENT)
            location = None if named else (folder / "mlartifacts").as_uri()
            self._experiment: str = (
                found.experiment_id
                if found is not None
                else self._client.create_experiment(EXPERIMENT, artifact_location=location)
            )
        self._runs: list[str] = []

    def taken(self, run: str) -> bool:
        """Is there a run with our tag?"""
        wanted = f"tags.`{_OURS}` = '{run}'"
        return bool(self._client.search_runs([self._experiment], filter_string=wanted, max_results=1))

    def open(self, run: RunInfo, training: Training | None) -> "_Run":
        """A new run; the first is the others' parent."""
        tags = {_OURS: run.id, "mlflow.source.name": "labsandbox"}
        if training is not None:
            tags["mlflow.parentRunId"] = self._runs[0]
        made = self._client.create_run(
            self._experiment,
            start_time=_milliseconds(run.began),
            tags=tags,
            run_name=plain(training.label, 200) if training else run.id,
        )
        self._runs.append(made.info.run_id)
        return _Run(self._client, made.info.run_id, run.began, training)

    def close(self) -> None:
        """Nothing is left to do."""

    def abandon(self) -> None:
        """Its runs have failed, and are among those that MLflow calls deleted."""
        for run in reversed(self._runs):
            self._client.set_terminated(run, "FAILED")
            self._client.delete_run(run)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process after another: MLflow makes a new store's tables without looking whether another does."""
    with (folder / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Run:
    def __init__(self, client: Any, run: str, began: float, training: Training | None) -> None:
        self._client, self._run, self._began, self._training = client, run, began, training
        self._steps = Steps()
        self._waiting: list[Any] = []
        self._sent = time.monotonic()

    def point(self, point: Point) -> None:
        """Kept for a moment, and sent with others."""
        self._add(point.t, self._steps.whole(point), point.values)
        if len(self._waiting) >= _BATCH or time.monotonic() - self._sent > _EVERY:
            self._send()

    def finish(
        self,
        state: State,
        t: float | None,
        values: Mapping[str, float],
        config: Mapping[str, Scalar],
        facts: Mapping[str, str],
        files: Mapping[str, Path],
    ) -> None:
        """What it returned as metrics `result:…`, its settings as parameters, what is known of it as tags."""
        from mlflow.entities import Param, RunTag

        self._add(t or 0.0, self._steps.last, values, "result:")
        self._send()
        one = self._training
        told: dict[str, Scalar] = {"arm": one.arm, "seed": one.seed, "phase": one.phase} if one else {}
        settings: dict[str, Scalar] = {name: value for name, value in told.items() if value is not None}
        settings |= {_free(metric_name(name), settings): value for name, value in config.items()}
        params = [Param(name, plain(str(value), 500)) for name, value in settings.items()]
        tags = [RunTag(f"labsandbox.{metric_name(name)}", plain(value, 5000)) for name, value in facts.items()]
        self._client.log_batch(self._run, params=params, tags=tags)
        for name, path in files.items():
            folder = PurePosixPath(name).parent
            self._client.log_artifact(self._run, str(path), None if folder == PurePosixPath() else str(folder))
        self._client.set_terminated(self._run, _STATUS[state], _milliseconds(self._began + (t or 0.0)))

    def _add(self, t: float, step: int, values: Mapping[str, float], prefix: str = "") -> None:
        from mlflow.entities import Metric

        at = _milliseconds(self._began + t)
        self._waiting += [Metric(prefix + metric_name(name), value, at, step) for name, value in values.items()]

    def _send(self) -> None:
        while self._waiting:
            self._client.log_batch(self._run, metrics=self._waiting[:_BATCH])
            del self._waiting[:_BATCH]
        self._sent = time.monotonic()


def _free(name: str, taken: Mapping[str, Scalar]) -> str:
    """A hyperparameter that is called as one of ours is."""
    return f"config:{name}" if name in taken else name


def _milliseconds(seconds: float) -> int:
    return int(min(max(seconds, 0.0), 2.0**40) * 1000)
