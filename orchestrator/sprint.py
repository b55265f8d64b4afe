"""One goal, three phases: discuss, implement, validate. Each has a budget, which is a deadline.

A phase that runs out of time ends with what it has and says so. An agent that fails costs its own contribution. The
summary is written after every phase, and every step is in the journal, so that a sprint can be resumed where it broke
off: it goes through the same steps again, and those on record are not done twice.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from executor.experiment import Execution
from orchestrator.advice import recommendation_of
from orchestrator.agents.errors import AgentError
from orchestrator.agents.team import ARCHITECT, TEAM, VALIDATOR
from orchestrator.context import Context
from orchestrator.implementation import Attempt, Implementation
from orchestrator.journal import now
from orchestrator.recall import remembered, section
from results.analysis import analyse
from results.curves import draw_run
from results.extract import extract, last_values
from results.findings import Analysis
from results.host import host_facts
from results.memory import Recall
from results.series import read_folder, read_series
from results.store import SUMMARY, StoreError

SCHEMA = "labsandbox.sprint/1"
_PERSPECTIVES = 0.6
"""The perspectives' share of the discussion's budget; the rest is the plan's, whoever stalls."""


@dataclass(frozen=True)
class Budgets:
    """Seconds of each phase."""

    discussion: float = 300.0
    implementation: float = 480.0
    validation: float = 120.0


class Sprint:
    """One sprint, or the rest of one. `run` may be called once."""

    def __init__(
        self,
        context: Context,
        seed: int = 0,
        budgets: Budgets | None = None,
        command: str | None = None,
        follows: str | None = None,
        audit: Path | None = None,
        recall: Recall | None = None,
    ) -> None:
        """command: how to repeat the sprint, for its record. follows: the sprint whose recommendation this is. audit: the
        log that has its executions. recall: what earlier sprints found; None: the team is told of none."""
        self._context = context
        self._seed = seed
        self._budgets = budgets or Budgets()
        self._command = command
        self._follows = follows
        self._audit = audit
        self._recall = recall
        self._phases: dict[str, dict[str, Any]] = {}
        self._summary: dict[str, Any] = {}

    def run(self, goal: str) -> dict[str, Any]:
        """The summary. Raises AgentError when no code came, after writing what there is."""
        folder, journal = self._context.folder, self._context.journal
        began = journal.step("begin", self._begun)
        self._summary = {
            "schema": SCHEMA,
            "sprint_id": folder.id.removeprefix("sprint_"),
            "goal": goal,
            "seed": self._seed,
            "agents": began["agents"],
            "command": self._command,
            "follows": self._follows,
            "memory": [],
            "host": began.get("host"),  # journals from before it was recorded have none
            "start_time": began["at"],
            "end_time": None,
            "phases": self._phases,
            "verdict": None,
        }
        try:
            self._remember(goal)
            plan = self._discuss(goal)
            attempt = self._implement(goal, plan)
            self._validate(goal, attempt)
            self._summary["end_time"] = now()
            if attempt.ended:
                self._summary["end_time"] = journal.step("end", self._finish)
        except BaseException:
            self._summary["end_time"] = now()
            raise
        finally:
            self._write()
        return self._summary

    def _begun(self) -> dict[str, Any]:
        agents, budgets = self._context.agents, vars(self._budgets)
        return {"at": now(), "agents": agents, "budgets": budgets, "host": host_facts()}

    def _finish(self) -> str:
        """The summary is whole before the sprint counts as ended: nobody looks at it again after that."""
        self._write()
        self._report()
        return str(self._summary["end_time"])

    def _remember(self, goal: str) -> None:
        """What is known goes into every prompt from here on."""
        context = self._context
        known = context.journal.step("memory", lambda: self._recalled(goal))
        self._summary["memory"] = [one["sprint"] for one in known]
        if known:
            context.progress.note(f"known from earlier: {', '.join(self._summary['memory'])}")
            context.terms = replace(context.terms, facts=context.terms.facts + section(known))

    def _recalled(self, goal: str) -> list[dict[str, Any]]:
        try:
            return remembered(self._recall(goal)) if self._recall else []
        except StoreError as error:
            self._context.progress.note(f"nothing is remembered: {error}")
            return []

    # ---- discussion ----

    def _discuss(self, goal: str) -> str:
        context = self._context
        phase, deadline = self._begin("discussion", self._budgets.discussion)
        errors: dict[str, str] = {}
        phase |= {"individual_responses": {}, "action_plan": "", "errors": errors}
        prompt = f"Goal: {goal}\n\nGive your perspective.\n\n{context.terms.facts}"
        until = deadline - (1 - _PERSPECTIVES) * self._budgets.discussion
        answers = context.ask_all({f"discussion.{role.name}": (role.name, prompt) for role in TEAM}, until)
        for role, (text, error) in zip(TEAM, answers, strict=True):
            (errors if error else phase["individual_responses"])[role.name] = error or text
        responses = phase["individual_responses"]
        if errors and responses:
            context.progress.note(f"the discussion goes on without {', '.join(errors)}")
        if responses:  # nobody answered: the same question would only be refused once more
            views = "\n\n".join(f"{name}: {text[:4000]}" for name, text in responses.items())
            prompt = f"Goal: {goal}\nTask: plan\n\nThe team said:\n{views}\n\n{context.terms.facts}"
            plan = lambda: context.ask("discussion.plan", ARCHITECT, prompt, deadline)  # noqa: E731
            phase["action_plan"], error = context.heard("Plan", plan)
            if error:
                errors["plan"] = error
        self._end("discussion", deadline)
        return str(phase["action_plan"])

    # ---- implementation ----

    def _implement(self, goal: str, plan: str) -> Attempt:
        phase, deadline = self._begin("implementation", self._budgets.implementation)
        work = Implementation(self._context, goal, plan, self._seed, deadline)
        try:
            attempt = work.run()
        except AgentError as error:
            phase["error"] = str(error)
            phase |= {"ended_at": now(), "timed_out": time.monotonic() >= work.deadline}
            raise
        finally:
            phase |= work.phase
            if work.healing:
                self._phases["self_healing"] = work.healing
        self._end("implementation", work.deadline)
        return attempt

    # ---- validation ----

    def _validate(self, goal: str, attempt: Attempt) -> None:
        context, execution = self._context, attempt.execution
        phase, deadline = self._begin("validation", self._budgets.validation)
        found = read_folder(context.folder.path)
        analysis = analyse(found.records, attempt.executions, found.series)
        verdict = _verdict(attempt.executions, analysis)
        self._summary["verdict"] = verdict
        phase |= {
            "execution_success": execution is not None and execution.success,
            "verdict": verdict,
            "numbers": analysis.model_dump(mode="json"),
            "extracted": None,
            "analysis": "",
            "recommendation": None,
            "errors": {},
        }
        self._write()  # the verdict stands before anything is drawn or asked
        if extract(context.folder.path):
            phase["extracted"] = last_values(read_series(context.folder.path))
        draw_run(context.folder.path)
        if not attempt.ended:  # whoever resumes the sprint runs it again
            phase |= {"ended_at": now(), "timed_out": False}
            return
        outcome = f"{execution.outcome.value}: {execution.message}" if execution else f"not run: {attempt.problem}"
        numbers = json.dumps(phase["numbers"])
        prompt = f"Goal: {goal}\nTask: validate\nOutcome: {outcome}\nVerdict: {verdict}\nNumbers: {numbers}\n"
        prompt += f"Extracted: {json.dumps(phase['extracted'])}\n" if phase["extracted"] else ""
        ask = lambda: context.ask("validation.analysis", VALIDATOR, prompt, deadline)  # noqa: E731
        phase["analysis"], error = context.heard(VALIDATOR, ask)
        if error:
            phase["errors"][VALIDATOR] = error
        phase["recommendation"] = recommendation_of(phase["analysis"], goal)
        self._end("validation", deadline)

    def _report(self) -> None:
        """For people. Whatever an experiment recorded, it costs the sprint no more than its report."""
        from results.report.report import write_report  # loaded when there is something to report

        try:
            write_report(self._context.folder, self._summary, self._audit)
        except Exception as error:
            self._context.progress.note(f"the report could not be written: {type(error).__name__}: {error}")

    # ---- bookkeeping ----

    def _begin(self, name: str, seconds: float) -> tuple[dict[str, Any], float]:
        """A phase's part of the summary, and its deadline: the rest of a sprint has the whole budget again."""
        self._context.progress.phase(name, seconds)
        began = self._context.journal.step(f"{name}.begin", now)
        self._phases[name] = {"started_at": began, "timed_out": False}
        return self._phases[name], time.monotonic() + seconds

    def _end(self, name: str, deadline: float) -> None:
        ended = self._context.journal.step(
            f"{name}.end", lambda: {"ended_at": now(), "timed_out": time.monotonic() >= deadline}
        )
        self._phases[name] |= ended
        self._write()

    def _write(self) -> None:
        self._context.folder.write_json(SUMMARY, self._summary)


def _verdict(executions: Sequence[Execution], analysis: Analysis) -> str:
    """The computed verdict; one that rests on a run which did not complete says so first."""
    if not executions:
        return "No verdict: the code was not run."
    last = executions[-1]
    if last.success:
        return analysis.verdict.text
    which = f" in its container {len(executions)}" if len(executions) > 1 else ""
    how = f"The experiment did not complete{which} ({last.outcome.value}: {last.message})."
    recorded = any(execution.metrics_total for execution in executions)
    return f"{how} From what it recorded until then: {analysis.verdict.text}" if recorded else how
