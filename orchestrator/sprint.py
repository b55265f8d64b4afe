"""One goal, three phases: discuss, implement, validate. Each has a budget, which is a deadline.

A phase that runs out of time ends with what it has and says so. An agent that fails costs its own contribution. The
summary is written after every phase, so that a crash leaves what was done.
"""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ParamSpec, Protocol

from executor.experiment import Execution, Experiment, Outcome, Sink
from executor.imports import check_source, needed_imports
from orchestrator.agents.answers import Code, strip_fences
from orchestrator.agents.client import LumenbridgeClient
from orchestrator.agents.errors import AgentError
from orchestrator.agents.team import ARCHITECT, TEAM, VALIDATOR
from results.analysis import Analysis, analyse
from results.curves import draw_curves
from results.metrics import read_records
from results.store import SUMMARY, RunFolder
from sandbox_images.lock import locked_requirements, requirements_text, stated_requirements

SCHEMA = "labsandbox.sprint/1"
_PERSPECTIVES = 0.6
"""The perspectives' share of the discussion's budget; the rest is the plan's, whoever stalls."""

_P = ParamSpec("_P")


@dataclass(frozen=True)
class Budgets:
    """Seconds of each phase."""

    discussion: float = 300.0
    implementation: float = 480.0
    validation: float = 120.0


class Progress(Protocol):
    """Told what goes on; a command line renders it."""

    def phase(self, name: str, seconds: float) -> None:
        """A phase begins, with its budget."""

    def said(self, agent: str, text: str) -> None:
        """An agent answered."""

    def note(self, text: str) -> None:
        """Anything else worth a line."""


class Silent:
    """Progress that nobody watches."""

    def phase(self, name: str, seconds: float) -> None: ...

    def said(self, agent: str, text: str) -> None: ...

    def note(self, text: str) -> None: ...


RunExperiment = Callable[[Experiment, Sink], Execution]


class Sprint:
    """One sprint. Its collaborators are handed in; `run` may be called once."""

    def __init__(
        self,
        client: LumenbridgeClient,
        run_experiment: RunExperiment,
        folder: RunFolder,
        facts: str,
        progress: Progress | None = None,
        seed: int = 0,
        budgets: Budgets | None = None,
        command: str | None = None,
    ) -> None:
        """command: how to repeat the sprint, for its record."""
        self._client = client
        self._run_experiment = run_experiment
        self._folder = folder
        self._facts = facts
        self._progress = progress or Silent()
        self._seed = seed
        self._budgets = budgets or Budgets()
        self._command = command
        self._phases: dict[str, dict[str, Any]] = {}
        self._summary: dict[str, Any] = {}

    def run(self, goal: str) -> dict[str, Any]:
        """The summary. Raises AgentError when no code came, after writing what there is."""
        self._summary = {
            "schema": SCHEMA,
            "sprint_id": self._folder.id.removeprefix("sprint_"),
            "goal": goal,
            "seed": self._seed,
            "agents": self._client.base_url,
            "command": self._command,
            "start_time": _now(),
            "end_time": None,
            "phases": self._phases,
            "verdict": None,
        }
        try:
            plan = self._discuss(goal)
            execution = self._implement(goal, plan)
            self._validate(goal, execution)
        finally:
            self._summary["end_time"] = _now()
            self._write()
        return self._summary

    # ---- discussion ----

    def _discuss(self, goal: str) -> str:
        deadline = self._begin("discussion", self._budgets.discussion)
        phase = self._phases["discussion"]
        responses: dict[str, str] = {}
        errors: dict[str, str] = {}
        phase |= {"individual_responses": responses, "action_plan": "", "errors": errors}
        prompt = f"Goal: {goal}\n\nGive your perspective.\n\n{self._facts}"
        until = deadline - (1 - _PERSPECTIVES) * self._budgets.discussion
        asked = {role.name: _in_background(self._client.invoke, role.name, prompt, until) for role in TEAM}
        for name, answer in asked.items():
            try:
                responses[name] = answer.result()
                self._progress.said(name, responses[name])
            except AgentError as error:
                errors[name] = str(error)
                self._progress.note(str(error))
        if errors and responses:
            self._progress.note(f"the discussion goes on without {', '.join(errors)}")
        views = "\n\n".join(f"{name}: {text[:4000]}" for name, text in responses.items())
        prompt = f"Goal: {goal}\nTask: plan\n\nThe team said:\n{views}\n\n{self._facts}"
        try:
            if responses:  # nobody answered: the same question would only be refused once more
                phase["action_plan"] = self._client.invoke(ARCHITECT, prompt, deadline)
                self._progress.said("Plan", phase["action_plan"])
        except AgentError as error:
            errors["plan"] = str(error)
            self._progress.note(str(error))
        self._end(phase, deadline)
        return str(phase["action_plan"])

    # ---- implementation ----

    def _implement(self, goal: str, plan: str) -> Execution | None:
        deadline = self._begin("implementation", self._budgets.implementation)
        phase = self._phases["implementation"]
        prompt = f"Goal: {goal}\n\nWrite the experiment as one Python file.\n\nPlan:\n{plan[:8000]}\n\n{self._facts}"
        try:
            answer = self._client.code(prompt, deadline)
        except AgentError as error:
            phase["error"] = str(error)
            self._end(phase, deadline)
            raise
        code = strip_fences(answer.code)
        self._folder.write_text("experiment.py", code)
        execution = self._execute(phase, answer, code, deadline)
        self._end(phase, deadline)
        return execution

    def _execute(self, phase: dict[str, Any], answer: Code, code: str, deadline: float) -> Execution | None:
        report = check_source(code)
        locked = locked_requirements(report.imports)
        self._folder.write_text("requirements.txt", requirements_text(report.imports, ()))
        phase |= {"code": code, "explanation": answer.explanation, "dependencies": list(locked)}
        if report.error is not None:
            error = f"the code does not parse (line {report.line}): {report.error}"
            self._progress.note(error)
            phase["execution"] = {"stdout": "", "stderr": "", "returncode": None, "success": False, "error": error}
            return None
        if time.monotonic() >= deadline:
            error = "no time was left to run the code"
            phase["execution"] = {"stdout": "", "stderr": "", "returncode": None, "success": False, "error": error}
            return None
        self._write()
        stated = stated_requirements(answer.dependencies, report.imports)
        needed = needed_imports(report)
        experiment = Experiment(code=code, seed=self._seed, requirements=stated, imports=needed)
        execution = self._run_experiment(experiment, self._folder)
        self._folder.write_text("requirements.txt", requirements_text(report.imports, execution.packages))
        self._folder.close()
        phase["execution"] = execution.as_json()
        return execution

    # ---- validation ----

    def _validate(self, goal: str, execution: Execution | None) -> None:
        deadline = self._begin("validation", self._budgets.validation)
        phase = self._phases["validation"]
        records = read_records(self._folder.path / "metrics.jsonl")
        analysis = analyse(records)
        verdict = _verdict(execution, analysis)
        completed = execution is not None and execution.success
        self._summary["verdict"] = verdict
        phase |= {
            "execution_success": completed,
            "verdict": verdict,
            "numbers": analysis.model_dump(mode="json"),
            "analysis": "",
            "errors": {},
        }
        self._write()  # the verdict stands before anything is drawn or asked
        draw_curves(records, self._folder.path / "curves.png")
        if execution is not None and execution.outcome is Outcome.CANCELLED:
            self._end(phase, deadline)
            return
        outcome = f"{execution.outcome.value}: {execution.message}" if execution else "not run: the code does not parse"
        numbers = json.dumps(phase["numbers"])
        prompt = f"Goal: {goal}\nTask: validate\nOutcome: {outcome}\nVerdict: {verdict}\nNumbers: {numbers}\n"
        try:
            phase["analysis"] = self._client.invoke(VALIDATOR, prompt, deadline)
            self._progress.said(VALIDATOR, phase["analysis"])
        except AgentError as error:
            phase["errors"]["ValidatorAgent"] = str(error)
            self._progress.note(str(error))
        self._end(phase, deadline)

    # ---- bookkeeping ----

    def _begin(self, name: str, seconds: float) -> float:
        self._progress.phase(name, seconds)
        self._phases[name] = {"started_at": _now(), "timed_out": False}
        return time.monotonic() + seconds

    def _end(self, phase: dict[str, Any], deadline: float) -> None:
        phase["ended_at"] = _now()
        phase["timed_out"] = time.monotonic() >= deadline
        self._write()

    def _write(self) -> None:
        self._folder.write_json(SUMMARY, self._summary)


def _in_background(work: Callable[_P, str], *arguments: _P.args, **named: _P.kwargs) -> Future[str]:
    """What `work` gives, from a daemon thread: unlike a pool's, nobody waits for it when the process is to end."""
    outcome: Future[str] = Future()

    def run() -> None:
        try:
            outcome.set_result(work(*arguments, **named))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="perspective", daemon=True).start()
    return outcome


def _verdict(execution: Execution | None, analysis: Analysis) -> str:
    """The computed verdict; one that rests on a run which did not complete says so first."""
    if execution is None:
        return "No verdict: the code was not run."
    if execution.success:
        return analysis.verdict.text
    how = f"The experiment did not complete ({execution.outcome.value}: {execution.message})."
    return f"{how} From what it recorded until then: {analysis.verdict.text}" if execution.metrics_total else how


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
