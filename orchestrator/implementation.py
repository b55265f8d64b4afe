"""From a plan to an experiment that ran: code is asked for, mended, run, and repaired while that may help.

A repair is decided by three of the team after the DebuggerAgent has looked; what needs no judgement (a program that does
not parse, a package that cannot be had, a run that took too long) is sent back at once. Every attempt stays on record.
"""

import time
from dataclasses import dataclass
from typing import Any

from executor.experiment import Execution, Outcome
from executor.imports import SourceReport, check_source
from orchestrator import repair
from orchestrator.agents.answers import Code
from orchestrator.agents.errors import AgentError
from orchestrator.agents.team import ARCHITECT, CODER, DEBUGGER, RESEARCHER
from orchestrator.context import Context
from orchestrator.mending import experiment_of, mend
from orchestrator.repair import Failure
from sandbox_images.lock import locked_requirements, requirements_text

MAX_REPAIRS = 3
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

    @property
    def ended(self) -> bool:
        """It came to an end of its own."""
        return self.execution is None or self.execution.outcome not in _UNENDED

    def as_phase(self) -> dict[str, Any]:
        """As it stands in a summary."""
        not_run = {"stdout": "", "stderr": "", "returncode": None, "success": False, "error": self.problem}
        return {
            "code": self.code,
            "explanation": self.answer.explanation,
            "dependencies": self.dependencies,
            "execution": self.execution.as_json() if self.execution else not_run,
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
        self._deadline = deadline
        self.phase: dict[str, Any] = {}
        self.healing: dict[str, Any] = {}
        """Empty where nothing failed."""

    def run(self) -> Attempt:
        """The last attempt. Raises AgentError when there is no code at all."""
        prompt = f"Goal: {self._goal}\nTask: implement\n\nPlan:\n{self._plan}\n\n{self._context.terms.facts}"
        # An answer that comes later would leave its program less than it may have, or less than half of the phase.
        until = max(self._until(), time.monotonic() + (self._deadline - time.monotonic()) / 2)
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
        return attempt

    # ---- one attempt ----

    def _try(self, number: int, answer: Code) -> Attempt:
        try:
            done = self._context.journal.step(f"attempt.{number}", lambda: self._run(answer))
        except _Unended as unended:
            done = unended.done
        finally:
            self._context.folder.close()
        execution = Execution.from_json(done["execution"]) if done["execution"] else None
        return Attempt(number, answer, done["code"], done["dependencies"], done["problem"], execution)

    def _run(self, answer: Code) -> dict[str, Any]:
        """Mends, checks and runs a program; everything about it as JSON."""
        folder, note = self._context.folder, self._context.progress.note
        folder.clear_attempt()  # what a crash left of this one
        mended = mend(answer.code)
        for line in mended.notes:
            note(f"the code was mended: {line}")
        report = check_source(mended.code)
        folder.write_text("experiment.py", mended.code)
        folder.write_text("requirements.txt", requirements_text(report.imports, ()))
        done: dict[str, Any] = {"code": mended.code, "dependencies": list(locked_requirements(report.imports))}
        done |= {"problem": _problem(mended.code, report), "execution": None}
        seconds = min(self._context.terms.wall, self._deadline - time.monotonic())
        if done["problem"] is None and seconds < _LEAST_RUN:
            done["problem"] = "no time was left to run the code"
        if done["problem"] is not None:
            note(done["problem"])
            return done
        experiment = experiment_of(mended, report, answer.dependencies, self._seed)
        execution = self._context.run_experiment(experiment, folder, seconds)
        folder.write_text("requirements.txt", requirements_text(report.imports, execution.packages))
        done["execution"] = execution.as_json()
        if execution.outcome in _UNENDED:
            raise _Unended(done)
        return done

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
        return self._deadline - self._context.terms.wall

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
