"""What an experiment's failure is, in words for those who may mend it; and what they answered. Pure functions."""

import re
from dataclasses import dataclass
from typing import Literal

from executor.experiment import Execution, MetricRecord, Outcome
from orchestrator.agents.answers import json_object
from policies.units import format_bytes

_TAIL = 3000
"""Characters of output that are told."""
_PROGRAM, _WORDS = 60_000, 4_000
"""Characters of a program and of an agent's words in a prompt."""
_FRAME = re.compile(r'File "(?:/workspace/)?experiment\.py", line (\d{1,7})')
_MENDABLE = {Outcome.FAILED, Outcome.TIMEOUT, Outcome.OOM, Outcome.OUTPUT_LIMIT, Outcome.GPU_MEMORY}
_LIMIT = {Outcome.OOM: "memory", Outcome.OUTPUT_LIMIT: "output"}


@dataclass(frozen=True)
class Failure:
    """A failure that other code could avoid."""

    what: str
    """For the agents: outcome, limits reached, the end of the output, the lines at fault."""
    way: Literal["send back", "discuss"]
    """Whether the cause is plain, so that the code can be sent back at once."""


def failure_of(code: str, problem: str | None, execution: Execution | None) -> Failure | None:
    """What other code could avoid of what happened; None where it could not: success, policy, infrastructure, Ctrl-C.

    problem: why the code was not run at all.
    """
    if problem is not None or execution is None:
        return Failure(f"The program was not run: {problem}", "send back")
    if execution.outcome not in _MENDABLE:
        return None
    if execution.outcome is Outcome.TIMEOUT:
        return Failure(_timeout(execution), "send back")
    if execution.started_at is None:
        return Failure(f"The program was not run: {execution.message}", "send back")
    parts = [f"Outcome: {execution.outcome.value}: {execution.message}"]
    name = _LIMIT.get(execution.outcome, "")
    if name in execution.limits:
        parts.append(f"Limit reached: {name}, {format_bytes(int(execution.limits[name].effective))}")
    if peak := execution.usage.peak_memory_bytes:
        parts.append(f"It used at most {peak / (1 << 20):.0f} MiB of memory, in {execution.timings.run_s:.1f} s.")
    parts += [f"End of its {name}:\n{text[-_TAIL:]}" for name, text in _outputs(execution) if text.strip()]
    if lines := lines_at_fault(code, execution.stderr):
        parts.append(f"Lines at fault:\n{lines}")
    return Failure("\n".join(parts), "discuss")


def _outputs(execution: Execution) -> list[tuple[str, str]]:
    return [("error output", execution.stderr), ("output", execution.stdout)]


def _timeout(execution: Execution) -> str:
    """How far it came in the time that it had, so that the next attempt can be made to fit."""
    wall = execution.limits["wall"].effective if "wall" in execution.limits else execution.timings.run_s
    ended = [record for record in execution.metrics if record.type == "run"]
    steps = [
        record.step for record in execution.metrics if isinstance(record, MetricRecord) and record.step is not None
    ]
    parts = [
        f"Outcome: timeout: stopped after {execution.timings.run_s:.1f} s at the limit of {wall:g} s. Nothing can raise the "
        "limit: the next program must do less, measure the time of a step first, and stop by lab.time_left()."
    ]
    if ended:
        mean = sum(run.seconds for run in ended) / len(ended)
        parts.append(f"By then {len(ended)} trainings had ended, {mean:.2f} s each on average.")
    if steps:
        parts.append(f"The last step on record was {max(steps):g}.")
    if execution.stdout.strip():
        parts.append(f"End of its output:\n{execution.stdout[-600:]}")
    return "\n".join(parts)


def lines_at_fault(code: str, stderr: str) -> str:
    """The program's own lines that a traceback names, each with two lines before and after, numbered."""
    lines = code.splitlines()
    wanted: set[int] = set()
    for number in [int(found) for found in _FRAME.findall(stderr)][-5:]:
        wanted.update(range(max(1, number - 2), min(len(lines), number + 2) + 1))
    return "\n".join(f"{number}: {lines[number - 1][:300]}" for number in sorted(wanted))


def diagnose_prompt(goal: str, failure: Failure, code: str, facts: str) -> str:
    """Asks the DebuggerAgent for the cause of a failure."""
    return f"Goal: {goal}\nTask: diagnose\n\n{failure.what}\n\n{_program(code)}\n\n{facts}"


def vote_prompt(goal: str, failure: Failure, diagnosis: str) -> str:
    """Asks whether a failure is worth a repair."""
    return (
        f"Goal: {goal}\nTask: vote\n\n{failure.what}\n\nThe DebuggerAgent says: {diagnosis[:_WORDS]}\n\n"
        "Should the program be written again with this in mind, and run once more? Answer with a first line "
        '"Vote: yes" or "Vote: no", and one sentence why.'
    )


def code_prompt(goal: str, plan: str, failure: Failure, diagnosis: str, code: str, facts: str) -> str:
    """Asks the code agent for a program that does not fail like this one."""
    said = f"\n\nThe DebuggerAgent says: {diagnosis[:_WORDS]}" if diagnosis else ""
    return (
        f"Goal: {goal}\nTask: repair\n\nThe program below failed.\n{failure.what}{said}\n\n{_program(code)}\n\n"
        f"Plan:\n{plan}\n\nWrite the whole program again so that it does not fail this way.\n\n{facts}"
    )


def _program(code: str) -> str:
    return f"The program:\n```python\n{code[:_PROGRAM]}```"


_VOTE = re.compile(r"\bvote\W{1,8}(yes|no|true|false)\b", re.IGNORECASE)
_FIRST = re.compile(r"\W{0,8}(yes|no)\b", re.IGNORECASE)


def vote_of(answer: str) -> bool | None:
    """For or against; None for an answer that does not say. "Vote: yes", JSON with a `vote`, or a first word."""
    said = (json_object(answer) or {}).get("vote")
    if isinstance(said, bool | str):
        answer = f"Vote: {said}"
    found = _VOTE.search(answer) or _FIRST.match(answer)
    return found[1].lower() in ("yes", "true") if found else None
