"""Reading a sprint's summary, whoever wrote it: any part may be missing, or be of another shape."""

from collections.abc import Mapping
from typing import Any

Summary = dict[str, Any]
CONCLUSIONS = ("better", "no detectable difference")
UNDECIDED = "inconclusive"


def object_of(value: Any) -> Mapping[str, Any]:
    """The value where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def part(summary: Summary, *path: str) -> Summary:
    """A part of `phases`; empty when it is missing or no object."""
    found: Any = summary.get("phases")
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def final_implementation(summary: Summary) -> Summary:
    """The code that was judged, and its execution: the repaired one where there is one, else the first."""
    repaired = part(summary, "self_healing", "new_implementation")
    return repaired if repaired.get("code") or repaired.get("execution") else part(summary, "implementation")


def execution_of(summary: Summary) -> Summary:
    """The record of the execution that was judged, or {}."""
    execution = final_implementation(summary).get("execution")
    return execution if isinstance(execution, dict) else {}


def outcome_of(summary: Summary) -> str | None:
    """How that execution ended; older summaries only say whether it succeeded."""
    execution = execution_of(summary)
    outcome = execution.get("outcome")
    if isinstance(outcome, str):
        return outcome
    if "success" in execution:
        return "completed" if execution["success"] is True else "failed"
    return None


def all_completed(summary: Summary) -> bool:
    """Whether every execution that was judged came to its own end, as far as is on record: nothing on record is no pass."""
    further = final_implementation(summary).get("further_containers")
    others = [
        one.get("outcome") if isinstance(one, dict) else None for one in (further if isinstance(further, list) else ())
    ]
    return all(outcome == "completed" for outcome in (outcome_of(summary), *others))


def word_of(summary: Summary) -> str:
    """The verdict in a word or two, as it may be shown; empty where there is none.

    A record may say "better" of a run that was ended from outside, from when nothing looked at that.
    """
    numbers = part(summary, "validation").get("numbers")
    verdict = numbers.get("verdict") if isinstance(numbers, dict) else None
    word = verdict.get("word") if isinstance(verdict, dict) else None
    if not isinstance(word, str):
        return ""
    return UNDECIDED if word in CONCLUSIONS and not all_completed(summary) else word


def ended_of(summary: Summary) -> str:
    """The same in words; empty where there are none."""
    execution = execution_of(summary)
    said = execution.get("message") or execution.get("error") or execution.get("outcome")
    if not said and "returncode" in execution:
        return f"returncode {execution['returncode']}"
    return str(said or "")


def verdict_of(summary: Summary) -> str | None:
    """The verdict's text."""
    verdict = part(summary, "validation").get("verdict") or summary.get("verdict")
    text = verdict.get("text") if isinstance(verdict, dict) else verdict
    return str(text) if text else None
