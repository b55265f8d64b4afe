"""Weights & Biases: a group for the sprint, in it a run for the sprint itself and one for each training.

Offline unless a person asks otherwise; `wandb sync` uploads what was written. NaN and infinities stay what they are.
W&B counts steps by itself and takes none back, so ours is a metric, `lab:step`, which every chart has as its axis.
A run that was killed ends with status 255, which W&B's own reader calls failed; `lab:state` says which it was.
Nothing is looked at but what it is given: no repository, no code, no console, no machine.
"""

import contextlib
import glob
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from results.export.names import metric_name, plain
from results.export.tracker import ExportError, Point, RunInfo, Scalar, State, Training

PROJECT = "labsandbox"
_EXIT: dict[State, int] = {"finished": 0, "failed": 1, "killed": 255}


class WandbRuns:
    """Offline runs below `out`/wandb."""

    def __init__(self, out: Path, online: bool) -> None:
        os.environ.update(WANDB_ERROR_REPORTING="false", DO_NOT_TRACK="true", WANDB_SILENT="true")
        import wandb

        # A question on the terminal, from a thread, in the middle of a run, would never be answered.
        if online and not wandb.login(prompt=False, verify=False):
            raise ExportError("W&B knows no account here: wandb login, or WANDB_API_KEY")
        self._out, self._wandb, self._online = out.absolute(), wandb, online
        self._runs: list[_Run] = []
        self._out.mkdir(parents=True, exist_ok=True)
        # A value that is given here is stronger than the same in the environment or a settings file.
        self._settings = wandb.Settings(
            mode="online" if online else "offline",
            root_dir=str(self._out),
            project=os.environ.get("WANDB_PROJECT", PROJECT) if online else PROJECT,
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
            disable_job_creation=True,
            host="labsandbox",
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self.where = str(self._out / "wandb")

    def taken(self, run: str) -> bool:
        """Is a run with this id there?"""
        return any((self._out / "wandb").glob(f"*run-*-{glob.escape(run)}"))

    def open(self, run: RunInfo, training: Training | None) -> "_Run":
        """A new run of the group."""
        told: dict[str, Scalar] = {}
        if training is not None:
            told = {"arm": training.arm, "seed": training.seed, "phase": training.phase, "trial": training.trial}
        made = self._wandb.init(
            id=run.id if training is None else f"{run.id}-{len(self._runs)}",
            group=run.id,
            name=run.id if training is None else plain(training.label, 128),
            job_type="sprint" if training is None else training.phase or "training",
            config={
                "lab:" + name: plain(value, 500) if isinstance(value, str) else value for name, value in told.items()
            },
            reinit="create_new",
            settings=self._settings,
        )
        self._runs.append(opened := _Run(made))
        made.define_metric("*", step_metric="lab:step")
        return opened

    def close(self) -> None:
        """Nothing is left to do; every run has been finished."""

    def abandon(self) -> None:
        """Its runs have failed; those that nobody has seen yet are removed."""
        for run in self._runs:
            with contextlib.suppress(Exception):
                run.fail()
            if not self._online:
                shutil.rmtree(run.folder, ignore_errors=True)


class _Run:
    def __init__(self, run: Any) -> None:
        self._run, self._finished = run, False
        self.folder = Path(run.dir).parent

    def fail(self) -> None:
        """Ends it, unless it has ended."""
        if not self._finished:
            self._run.finish(exit_code=_EXIT["failed"])

    def point(self, point: Point) -> None:
        """One row of its history."""
        step = point.index if point.step is None else point.step
        values = {metric_name(name): value for name, value in point.values.items()}
        self._run.log({**values, "lab:step": step, "lab:seconds": point.t})

    def finish(
        self,
        state: State,
        t: float | None,
        values: Mapping[str, float],
        config: Mapping[str, Scalar],
        facts: Mapping[str, str],
        files: Mapping[str, Path],
    ) -> None:
        """What it returned as summary `result:…`, its settings as config, what is known of it as summary `lab:…`."""
        self._run.config.update({metric_name(name): value for name, value in config.items()})
        told: dict[str, Scalar] = {f"lab:{metric_name(name)}": plain(value, 5000) for name, value in facts.items()}
        told |= {f"result:{metric_name(name)}": value for name, value in values.items()}
        self._run.summary.update({**told, "lab:state": state})
        for name, path in files.items():
            # A copy: the run can be moved to the machine that uploads it.
            target = Path(self._run.dir) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            self._run.save(glob.escape(str(target)), base_path=self._run.dir, policy="now")
        self._run.finish(exit_code=_EXIT[state])
        self._finished = True
