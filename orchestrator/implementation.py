"""From a plan to an experiment that ran: code is asked for, mended, run, and repaired while that may help.

A repair is decided by three of the team after the DebuggerAgent has looked; what needs no judgement (a program that does
not parse, a package that is not available, a run that took too long) is sent back at once. Every attempt stays on record.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from executor.experiment import AnyRecord, Execution, Experiment, Left, Outcome, RunRecord
from executor.imports import SourceReport, check_source
from orchestrator import repair
from orchestrator.agents.answers import Code
from orchestrator.agents.errors import AgentError
from orchestrator.agents.team import ARCHITECT, CODER, DEBUGGER, RESEARCHER
from orchestrator.context import Context
from orchestrator.mending import experiment_of, mend
from orchestrator.repair import Failure
from results.further import left_of
from results.series import read_folder
from sandbox_images.lock import locked_requirements, requirements_text

MAX_REPAIRS = 3
MAX_CONTAINERS = 8
"""For one study."""
_MARGIN = 1.25
_AROUND = 5.0
"""Seconds that a container needs besides its trainings: to load, to measure, to end."""
_MAX_PLAN = 20_000
"""Characters of it that prompts repeat."""
_LEAST_RUN = 1.0
"""Seconds. In less nothing can be found out."""
_VOTERS = (RESEARCHER, ARCHITECT, CODER)
_UNENDED = {Outcome.CANCELLED, Outcome.INFRASTRUCTURE}
"""What is tried again when the sprint is resumed."""


@dataclass(frozen=True)
class Attempt:
    """One program and what came of it."""

    number: int
    answer: Code
    code: str
    dependencies: list[str]
    problem: str | None
    """Why it was not run; None when it was."""
    execution: Execution | None
    experiment: dict[str, Any]
    """What else was asked of the executor, as JSON; empty when it was not run."""
    further: tuple[Execution, ...] = ()
    """Containers in which the study went on, where one was too short for it."""

    @property
    def ended(self) -> bool:
        """It came to an end of its own."""
        return not any(run.outcome in _UNENDED for run in self.executions)

    @property
    def executions(self) -> tuple[Execution, ...]:
        """Its runs, in their order."""
        return (*((self.execution,) if self.execution else ()), *self.further)

    def as_phase(self) -> dict[str, Any]:
        """The attempt as a part of a summary, under its names."""
        not_run = {"stdout": "", "stderr": "", "returncode": None, "success": False, "error": self.problem}
        return {
            "code": self.code,
            "explanation": self.answer.explanation,
            "dependencies": self.dependencies,
            "execution": self.execution.as_json() if self.execution else not_run,
            "further_containers": [execution.as_json() for execution in self.further],
        }


class _Unended(Exception):
    """A run that was cut off: no step of the journal."""

    def __init__(self, done: dict[str, Any]) -> None:
        super().__init__()
        self.done = done


class Implementation:
    """The second phase of one sprint. `phase` and `healing` are parts of the summary, filled as it goes."""

    def __init__(self, context: Context, goal: str, plan: str, seed: int, deadline: float) -> None:
        self._context = context
        self._goal = goal
        self._plan = plan[:_MAX_PLAN]
        self._seed = seed
        self.deadline = deadline
        """When the phase is over; waiting for a GPU moves it."""
        self.phase: dict[str, Any] = {}
        self.healing: dict[str, Any] = {}
        """Empty where nothing failed."""

    def run(self) -> Attempt:
        """The last attempt. Raises AgentError when there is no code at all."""
        prompt = f"Goal: {self._goal}\nTask: implement\n\nPlan:\n{self._plan}\n\n{self._context.terms.facts}"
        # An answer that comes later would leave its program less than it may have, or less than half of the phase.
        until = max(self._until(), time.monotonic() + (self.deadline - time.monotonic()) / 2)
        answer = self._context.ask_code("implementation.code", prompt, until, final=True)
        attempt = self._try(1, answer)
        self.phase |= attempt.as_phase()
        while attempt.ended:
            failure = repair.failure_of(attempt.code, attempt.problem, attempt.execution)
            better = self._better(attempt, failure) if failure else None
            if better is None:
                break
            self._set_aside(attempt)
            attempt = self._try(attempt.number + 1, better)
            self.healing["new_implementation"] = attempt.as_phase()
            self.healing["fix_applied"] = bool(attempt.execution and attempt.execution.success)
        if attempt.ended and attempt.execution is not None and attempt.execution.success:
            attempt = replace(attempt, further=tuple(self._go_on(attempt)))
            (self.healing["new_implementation"] if attempt.number > 1 else self.phase).update(attempt.as_phase())
        return attempt

    # ---- one attempt ----

    def _once(self, step: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A run, done once; one that was cut off is tried again by whoever resumes the sprint."""
        try:
            return self._context.journal.step(step, run)
        except _Unended as unended:
            return unended.done
        finally:
            self._context.folder.close()

    def _try(self, number: int, answer: Code) -> Attempt:
        done = self._once(f"attempt.{number}", lambda: self._run(answer))
        execution = Execution.from_json(done["execution"]) if done["execution"] else None
        experiment = done.get("experiment") or {}
        return Attempt(number, answer, done["code"], done["dependencies"], done["problem"], execution, experiment)

    def _run(self, answer: Code) -> dict[str, Any]:
        """Mends, checks and runs a program; everything about it as JSON."""
        folder, note = self._context.folder, self._context.progress.note
        folder.clear_attempt()  # what a crash left of this one
        mended = mend(answer.code)
        for line in mended.notes:
            note(f"the code was mended: {line}")
        report = check_source(mended.code)
        folder.write_text("experiment.py", mended.code)
        flavour = self._context.terms.flavour
        folder.write_text("requirements.txt", requirements_text(report.imports, (), flavour))
        done: dict[str, Any] = {"code": mended.code, "dependencies": locked_requirements(report.imports, flavour)}
        done |= {"problem": _problem(mended.code, report), "execution": None}
        seconds = min(self._context.terms.wall, self.deadline - time.monotonic())
        if done["problem"] is None and seconds < _LEAST_RUN:
            done["problem"] = "no time was left to run the code"
        if done["problem"] is not None:
            note(done["problem"])
            return done
        experiment = experiment_of(mended, report, answer.dependencies, flavour, self._seed)
        done["experiment"] = experiment.model_dump(mode="json", exclude={"code", "left", "more"})
        experiment = experiment.model_copy(update={"more": max(0.0, self.deadline - time.monotonic() - seconds)})
        execution = self._context.run_experiment(experiment, folder, seconds)
        self.deadline += execution.timings.queue_s
        folder.write_text("requirements.txt", requirements_text(report.imports, execution.packages, flavour))
        done["execution"] = execution.as_json()
        if execution.outcome in _UNENDED:
            raise _Unended(done)
        return done

    # ---- further containers ----

    def _go_on(self, attempt: Attempt) -> Iterator[Execution]:
        """Runs a study on for which a container's time was too short, while it gets further and the phase has time."""
        made = -1
        for number in range(2, MAX_CONTAINERS + 1):
            step, left = f"attempt.{attempt.number}.container.{number}", None
            if not self._context.journal.done(step):
                records = read_folder(self._context.folder.path).records
                left = left_of(records)
                if left is None or len(left.runs) <= made or not self._has_time(records):
                    return
                made = len(left.runs)
                self._context.progress.note(f"the study goes on in container {number}: its time was too short")
            execution = Execution.from_json(self._once(step, partial(self._run_on, attempt, left)))
            yield execution
            if not execution.success:
                return

    def _has_time(self, records: Iterable[AnyRecord]) -> bool:
        """Whether the phase has time for a container in which a pair can be made."""
        longest: dict[str, float] = {}
        for run in (record for record in records if isinstance(record, RunRecord)):
            longest[run.arm] = max(longest.get(run.arm, 0.0), run.seconds)
        needed = _MARGIN * sum(longest.values()) + _AROUND
        return needed < min(self._context.terms.wall, self.deadline - time.monotonic())

    def _run_on(self, attempt: Attempt, left: Left | None) -> dict[str, Any]:
        folder = self._context.folder
        folder.open(go_on=True)
        seconds = min(self._context.terms.wall, self.deadline - time.monotonic())
        more = max(0.0, self.deadline - time.monotonic() - seconds)
        experiment = Experiment(code=attempt.code, **attempt.experiment, left=left, more=more)
        execution = self._context.run_experiment(experiment, folder, seconds)
        self.deadline += execution.timings.queue_s
        if execution.outcome in _UNENDED:
            raise _Unended(execution.as_json())
        return execution.as_json()

    # ---- repair ----

    def _better(self, attempt: Attempt, failure: Failure) -> Code | None:
        """New code for a failure that it may avoid; None where it is given up, and why is on record."""
        step = f"repair.{attempt.number}"
        record: dict[str, Any] = {"attempt": attempt.number, "failure": failure.what, "analysis": "", "votes": {}}
        self.healing.setdefault("attempts", []).append(record)
        self.healing.setdefault("fix_applied", False)
        self.healing.setdefault("new_implementation", None)
        record["decision"] = self._context.journal.step(f"{step}.begin", lambda: self._decision(attempt))
        answer = None
        if record["decision"] == _GO:
            answer = self._ask(step, record, attempt, failure)
        self._context.progress.note(f"attempt {attempt.number}: {record['decision']}")
        return answer

    def _decision(self, attempt: Attempt) -> str:
        if attempt.number > MAX_REPAIRS:
            return f"given up after {MAX_REPAIRS} repairs"
        if self._until() <= time.monotonic():
            return "given up: no time is left for another run"
        return _GO

    def _until(self) -> float:
        """When an answer must be there so that the new code can still be run."""
        return self.deadline - self._context.terms.wall

    def _ask(self, step: str, record: dict[str, Any], attempt: Attempt, failure: Failure) -> Code | None:
        context = self._context
        if failure.way == "discuss":
            prompt = repair.diagnose_prompt(self._goal, failure, attempt.code, context.terms.facts)
            asked = lambda: context.ask(f"{step}.analysis", DEBUGGER, prompt, self._until())  # noqa: E731
            record["analysis"], error = context.heard(DEBUGGER, asked)
            if error:
                record["analysis_error"] = error
            if not self._agreed(step, record, failure):
                record["decision"] = "given up: no majority for a repair"
                return None
        prompt = repair.code_prompt(
            self._goal, self._plan, failure, record["analysis"], attempt.code, context.terms.facts
        )
        try:
            answer = context.ask_code(f"{step}.code", prompt, self._until(), final=False)
        except AgentError as error:
            record["decision"] = f"given up: {error}"
            return None
        if mend(answer.code).code.strip() == attempt.code.strip():
            record["decision"] = "given up: the same code came again"
            return None
        return answer

    def _agreed(self, step: str, record: dict[str, Any], failure: Failure) -> bool:
        """Whether more than half of those who may vote are for a repair."""
        context = self._context
        prompt = repair.vote_prompt(self._goal, failure, record["analysis"])
        answers = context.ask_all({f"{step}.vote.{name}": (name, prompt) for name in _VOTERS}, self._until())
        votes = []
        for name, (text, error) in zip(_VOTERS, answers, strict=True):
            vote = repair.vote_of(text)
            votes.append(vote)
            record["votes"][name] = {"vote": _WORDS[vote], "said": text or error}
        return votes.count(True) > len(_VOTERS) / 2

    def _set_aside(self, attempt: Attempt) -> None:
        """Keeps an attempt's files in attempts/N, to make room for the next."""
        number = attempt.number

        def work() -> str:
            self._context.folder.write_json("execution.json", attempt.as_phase()["execution"])
            return self._context.folder.set_aside(number)

        self.healing["attempts"][-1]["folder"] = self._context.journal.step(f"repair.{number}.set_aside", work)


_GO = "written again"
_WORDS = {True: "yes", False: "no", None: "none"}


def _problem(code: str, report: SourceReport) -> str | None:
    if not code.strip():
        return "the code is empty"
    if report.error is None:
        return None
    where = f" (line {report.line})" if report.line else ""
    return f"the code does not parse{where}: {report.error}"
