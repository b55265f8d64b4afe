"""A sweep: trials, each in a container of its own, then the best configuration against the defaults on fresh seeds."""

import contextlib
import fcntl
import itertools
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

from executor.experiment import (
    AnyRecord,
    Config,
    Execution,
    Experiment,
    MetricRecord,
    Outcome,
    ParamsRecord,
    PlanRecord,
    RunRecord,
    Sink,
)
from executor.sinks import PassingSink
from orchestrator.errors import UsageProblem
from orchestrator.lab_setup import Lab
from orchestrator.search.spec import SPEC, SUMMARY, SweepSpec, Unfit
from orchestrator.search.study import Running, Search, metric_of
from policies.model import Limits
from policies.units import format_bytes
from results.analysis import analyse
from results.contrasts import RULE
from results.host import host_facts
from results.search_plots import draw_search
from results.statistics import TOO_LARGE
from results.store import EXECUTION, RunFolder

_CONFIRM_SEEDS = 1_000
"""Added to the sweep's seed: what confirms has decided nothing before."""
_DEFAULTS = "Defaults"
_UNENDED = (Outcome.CANCELLED, Outcome.INFRASTRUCTURE, Outcome.DENIED)
Told = Callable[[str], None]
_T = TypeVar("_T")
_R = TypeVar("_R")


class Watching(PassingSink):
    """Keeps the last of every metric of a run, and what it declares; `heard` gets each metric's name, step and value."""

    def __init__(self, then: Sink, heard: Callable[[str, float | None, float], None]) -> None:
        super().__init__(then)
        self._heard = heard
        self.last: dict[str, float] = {}
        self.params: ParamsRecord | None = None

    def record(self, record: AnyRecord) -> None:
        super().record(record)
        if isinstance(record, ParamsRecord):
            self.params = self.params or record
        elif isinstance(record, MetricRecord):
            for name, value in record.values.items():
                self.last[name] = value
                self._heard(name, record.step, value)


@dataclass(frozen=True)
class Ended:
    """How one run of the experiment ended."""

    execution: Execution
    last: dict[str, float]
    params: ParamsRecord | None

    def value(self, metric: str | None) -> float | None:
        """The last value of a metric; None where the run did not complete, or it is not a number to compare by."""
        return self.last[metric or ""] if not self.why(metric) else None

    def why(self, metric: str | None) -> str:
        """Why there is no value; empty where there is one."""
        if self.execution.outcome is not Outcome.COMPLETED:
            return self.execution.message or self.execution.outcome.value
        found = self.last.get(metric or "")
        if found is None:
            return f"it logged no {metric}"
        return "" if abs(found) <= TOO_LARGE else f"diverged: {metric} {found:g}"


class Sweep:
    """One sweep, or the rest of one. `run` may be called once."""

    def __init__(self, lab: Lab, spec: SweepSpec, folder: Path, parallel: int, told: Told) -> None:
        """parallel: how many containers at a time, as `fitting` found."""
        self._lab = lab
        self._spec = spec
        self._folder = folder
        self._told = told
        self._code = (folder / "experiment.py").read_text(encoding="utf-8")
        self._search = Search(folder, spec)
        self._lock = threading.Lock()
        """Held by whoever uses the search, which is not for several threads at once."""
        self._parallel = parallel
        self._ending = threading.Event()

    def run(self) -> dict[str, Any]:
        """The summary. Raises UsageProblem where the experiment cannot be swept; KeyboardInterrupt, after ending what
        runs: it can be taken up again."""
        with alone(self._folder):
            if lost := self._search.take_up():
                self._told(f"{lost} trial(s) were cut off, and are tried again")
            if not self._search.begun:
                self._first()
            if shape := self._search.lay_grid():
                self._told(f"the grid: {shape}")
            self._each(lambda _: self._trial(), range(self._search.left()))
            summary = self._summary(self._confirmation())
            draw_search(
                [(trial.number, state, trial.value) for trial, state in self._search.ended()],
                self._search.importances(), self._search.metric or "", self._spec.maximize, self._folder,
            )  # fmt: skip
            RunFolder(self._folder).write_json(SUMMARY, summary)  # last: with it, the sweep has ended
        return summary

    def _each(self, work: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
        """The results in their order, of several at a time. Where one raises, the others are ended."""
        with ThreadPoolExecutor(self._parallel, "run") as pool:
            tasks = [pool.submit(work, item) for item in items]
            try:
                for task in as_completed(tasks):
                    task.result()
                return [task.result() for task in tasks]
            except BaseException:
                self._ending.set()  # every run asks whether it is wanted
                for task in tasks:
                    task.cancel()
                raise

    # ---- trials ----

    def _first(self) -> None:
        """The experiment with its own defaults: what it declares is the space."""
        ended = self._once("trials/0", {}, self._spec.seed)
        if ended.execution.outcome in _UNENDED:
            raise Stopped(ended.execution)
        if ended.params is None and ended.execution.outcome is not Outcome.COMPLETED:
            raise UsageProblem(f"the experiment fails before it declares parameters: {ended.execution.message}")
        if ended.params is None:
            raise Unfit('the experiment declares no parameters: lab.params(lr=("log", 1e-5, 1e-1), …)')
        metric = metric_of(ended.last, self._spec.metric)
        value = ended.value(metric)
        if value is None:
            raise Unfit(f"with its defaults the experiment gives no {metric}: {ended.why(metric)}")
        self._search.begin(ended.params.space, ended.params.chosen, metric, value)
        self._told(f"trial 0 (the defaults): {metric} {value:.6g}")

    def _trial(self) -> None:
        if self._ending.is_set():
            return
        with self._lock:
            running = self._search.ask()
        pruned: list[str] = []
        heard = partial(self._heard, running, pruned)
        ended = self._once(f"trials/{running.number}", running.params, self._spec.seed, heard, pruned)
        if ended.execution.outcome in _UNENDED and not pruned:
            raise Stopped(ended.execution)
        metric = self._search.metric
        # What was pruned and came to its end all the same has no value: its pruning was decided first.
        value = None if pruned else ended.value(metric)
        why = pruned[0] if pruned else ended.why(metric)
        with self._lock:
            self._search.tell(running, value, bool(pruned), why)
        said = f"{metric} {value:.6g}" if value is not None else why
        self._told(f"trial {running.number} ({_words(running.params)}): {said}")

    def _heard(self, running: Running, pruned: list[str], name: str, step: float | None, value: float) -> None:
        """Takes a metric of a trial under way, and says in `pruned` why the trial is to end, where it is."""
        if not self._spec.prune or pruned or name != self._search.metric:
            return
        with self._lock:
            at = running.hopeless(value, step)
        if at is not None:
            pruned.append(f"pruned at step {at}: {name} {value:.4g} is worse than most had")

    def _once(
        self,
        name: str,
        params: Config,
        seed: int,
        heard: Callable[[str, float | None, float], None] = lambda name, step, value: None,
        unwanted: list[str] | None = None,
    ) -> Ended:
        """One run in a folder of its own; what a crash left of it is done anew."""
        path = self._folder / name
        path.mkdir(parents=True, exist_ok=True)
        folder = RunFolder(path)
        folder.clear_attempt()
        folder.write_text("experiment.py", self._code)
        folder.write_json("params.json", params)
        experiment = Experiment(
            code=self._code,
            seed=seed,
            requirements=self._spec.requirements,
            imports=self._spec.imports,
            params=params,
        )
        sink = Watching(folder, heard)

        def why() -> str | None:
            return "interrupted" if self._ending.is_set() else (unwanted[0] if unwanted else None)

        with folder:
            execution = self._lab.executor.run(
                experiment, self._lab.policy, self._lab.request, sink, sprint=self._folder.name, unwanted=why
            )
        folder.write_json(EXECUTION, execution.as_json())
        return Ended(execution, sink.last, sink.params)

    # ---- confirmation ----

    def _confirmation(self) -> dict[str, Any] | None:
        """The best configuration against the defaults, paired on fresh seeds; None where there is nothing to confirm."""
        best = self._search.best()
        defaults = self._search.ended()[0][0].params
        if best is None or not self._spec.confirm or best.params == defaults:
            return None
        metric = self._search.metric or ""
        seeds = [(self._spec.seed + _CONFIRM_SEEDS + index) % 2**32 for index in range(self._spec.confirm)]
        arms: dict[str, Config] = {_DEFAULTS: dict(defaults), f"Trial {best.number}": dict(best.params)}
        plan = PlanRecord(
            t=0,
            factor="configuration",
            arms=list(arms),
            seeds=seeds,
            primary=metric,
            lower_is_better=not self._spec.maximize,
            rule=RULE,
        )
        runs = self._each(
            lambda one: self._confirmed(one[1], arms[one[1]], one[0], metric),
            itertools.product(seeds, arms),  # whole pairs first
        )
        executions = [self._execution(_confirming(arm, seed)) for seed, arm in itertools.product(seeds, arms)]
        analysis = analyse([plan, *runs], executions)
        self._told(f"confirmed on {len(seeds)} fresh seeds: {analysis.verdict.text}")
        return {"plan": plan.model_dump(mode="json"), "numbers": analysis.model_dump(mode="json")}

    def _confirmed(self, arm: str, params: Config, seed: int, metric: str) -> RunRecord:
        name = _confirming(arm, seed)
        known = self._folder / name / "run.json"
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = RunRecord.model_validate_json(known.read_bytes())
            if (found.arm, found.config) == (arm, params):
                return found
        ended = self._once(name, params, seed)
        execution, value, why = ended.execution, ended.value(metric), ended.why(metric)
        if execution.outcome in _UNENDED:
            raise Stopped(execution)
        record = RunRecord(
            t=0,
            arm=arm,
            seed=seed,
            phase="confirm",
            status="ok" if value is not None else "diverged" if why.startswith("diverged") else "failed",
            values={metric: value} if value is not None else {},
            config=params,
            seconds=execution.timings.run_s,
            error=why[:500] or None,
        )
        RunFolder(known.parent).write_text(known.name, record.model_dump_json())
        return record

    def _execution(self, name: str) -> Execution:
        return Execution.from_json(json.loads((self._folder / name / EXECUTION).read_bytes()))

    # ---- what is left ----

    def _summary(self, confirmation: dict[str, Any] | None) -> dict[str, Any]:
        best = self._search.best()
        return {
            "schema": "labsandbox.sweep/1",
            "command": self._spec.command,
            "goal": self._spec.goal,
            "host": host_facts(),
            "metric": self._search.metric,
            "maximize": self._spec.maximize,
            "space": {name: one.model_dump(exclude_none=True) for name, one in self._search.space.items()},
            "trials": [
                {
                    "number": trial.number,
                    "state": state,
                    "params": trial.params,
                    "value": trial.value if trial.value is not None and math.isfinite(trial.value) else None,
                    "why": str(trial.user_attrs.get("why", "")),
                    "folder": f"trials/{trial.number}",
                }
                for trial, state in self._search.ended()
            ],
            "best": None if best is None else {"number": best.number, "params": best.params, "value": best.value},
            "at_edge": [] if best is None else self._search.edges(best.params),
            "importances": self._search.importances(),
            "confirmation": confirmation,
            "verdict": _verdict(best is not None, confirmation, self._spec.confirm),
            "note": "The best value of a search is optimistic: it was chosen for being the best. What counts is the confirmation.",
        }


class Stopped(Exception):
    """A run did not end by itself, so the sweep stops here, and can be taken up again."""

    def __init__(self, execution: Execution) -> None:
        super().__init__(f"{execution.outcome.value}: {execution.message}")
        self.execution = execution


def fitting(limits: Limits, wanted: int, on_gpus: int | None = None) -> tuple[int, str]:
    """How many containers at a time this machine has cores and memory for, at most `wanted`; and what to say of it.

    With fewer cores than their limits promise, a trial's value would depend on what else went on meanwhile.
    on_gpus: how many it has GPUs for, where they need some.
    """
    if on_gpus is not None and on_gpus < wanted:
        on_gpus = max(1, on_gpus)
        return on_gpus, f"--parallel {wanted}: {on_gpus} at a time, as each has {limits.gpus} of this machine's GPUs"
    if on_gpus is not None:
        return wanted, ""  # those with GPUs do not queue for cores and memory
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total
    fits = max(1, min(wanted, int(cores / limits.cpus), int(memory / limits.memory)))
    if fits == wanted:
        return wanted, ""
    return fits, (
        f"--parallel {wanted}: {fits} at a time, as each has {limits.cpus:g} of this machine's {cores} cores, and "
        f"{format_bytes(limits.memory)} of its {memory / 2**30:.0f} GiB; --cpus and --memory ask for less"
    )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else carries this sweep out meanwhile. Raises UsageProblem."""
    descriptor = os.open(folder / SPEC, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UsageProblem(f"{folder.name} is being carried out by another process") from None
    finally:
        os.close(descriptor)


def _confirming(arm: str, seed: int) -> str:
    """The folder of one of the confirming runs."""
    return f"confirm/{'defaults' if arm == _DEFAULTS else 'best'}-{seed}"


def _verdict(found: bool, confirmation: dict[str, Any] | None, asked: int) -> str:
    if confirmation is not None:
        return str(confirmation["numbers"]["verdict"]["text"])
    if not found:
        return "No trial came to a value."
    if not asked:
        return "Not confirmed: the best of a search is best by luck as well, and --confirm was 0."
    return "Nothing to confirm: no trial was better than the defaults."


def _words(params: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items()
    )
