"""Two tables: metrics.csv in long format, and runs.csv with one line for each training.

Text that a spreadsheet would read as a formula is given an apostrophe in front. NaN and infinities are `nan`, `inf`
and `-inf`, numbers are written so that they read back exactly. A folder appears whole or not at all.
"""

import contextlib
import csv
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from policies.text import cell
from results.export.names import file_name
from results.export.tracker import Point, RunInfo, Scalar, State, Training

METRICS = ("arm", "seed", "phase", "trial", "step", "t", "metric", "value", "origin")
RUNS = ("run", "arm", "seed", "phase", "trial", "state", "t", "values", "config", "facts")


class CsvFolder:
    """A folder for each run below `out`."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.where = str(out)
        self._part: Path | None = None
        self._target = out
        self._files: list[TextIO] = []

    def taken(self, run: str) -> bool:
        """Is its folder there?"""
        return (self._out / file_name(run)).exists()

    def open(self, run: RunInfo, training: Training | None) -> "_Rows":
        """The first call makes the files, under a temporary name until `close`."""
        if self._part is None:
            self._target = self._out / file_name(run.id)
            self.where = str(self._target)
            self._out.mkdir(parents=True, exist_ok=True)
            self._part = Path(tempfile.mkdtemp(prefix=".part-", dir=self._out))
            self._files = [
                (self._part / name).open("w", encoding="utf-8", newline="") for name in ("metrics.csv", "runs.csv")
            ]
            for file, header in zip(self._files, (METRICS, RUNS), strict=True):
                csv.writer(file).writerow(header)
        metrics, runs = self._files
        return _Rows(metrics, runs, run.id, training)

    def close(self) -> None:
        """Makes the folder appear."""
        for file in self._files:
            file.close()
        if self._part is not None:
            self._part.chmod(0o755)
            self._part.replace(self._target)
            self._part = None

    def abandon(self) -> None:
        """Forgets what is not whole."""
        for file in self._files:
            with contextlib.suppress(OSError):  # what the disk did not take
                file.close()
        if self._part is not None:
            shutil.rmtree(self._part, ignore_errors=True)


class _Rows:
    def __init__(self, metrics: TextIO, runs: TextIO, run: str, training: Training | None) -> None:
        self._metrics, self._runs, self._run = csv.writer(metrics), csv.writer(runs), run
        one = training or Training(None, None, None)
        seed = "" if one.seed is None else one.seed
        self._who = (cell(one.arm), seed, one.phase or "", one.trial if training else "")

    def point(self, point: Point) -> None:
        """One line for each value."""
        step = "" if point.step is None else repr(point.step)
        t = repr(point.t) if point.timed else ""
        for name, value in point.values.items():
            self._metrics.writerow((*self._who, step, t, cell(name), repr(value), cell(point.origin)))

    def finish(
        self,
        state: State,
        t: float | None,
        values: Mapping[str, float],
        config: Mapping[str, Scalar],
        facts: Mapping[str, str],
        files: Mapping[str, Path],
    ) -> None:
        """One line of runs.csv; values, config and facts are JSON in a cell. Files are left where they are."""
        numbers = {name: value if abs(value) < float("inf") else repr(value) for name, value in values.items()}
        cells = (json.dumps(part) if part else "" for part in (numbers, dict(config), dict(facts)))
        self._runs.writerow((self._run, *self._who, state, "" if t is None else repr(t), *cells))
