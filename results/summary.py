"""Reading a sprint's summary, whoever wrote it: any part may be missing, or be of another shape."""

from typing import Any

Summary = dict[str, Any]


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
