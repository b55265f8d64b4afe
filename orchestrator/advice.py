"""What a sprint's validator would try next, and which of that nobody has taken up yet."""

import re
from dataclasses import dataclass
from typing import Any

from orchestrator.agents.answers import clean_line, json_object
from orchestrator.errors import UsageProblem
from orchestrator.goal import check_goal, same_goal
from results.store import Store, StoreError

_MAX_GOAL = 500
# With whatever Markdown marks stand before the words.
_GOAL = re.compile(r"^[\s*#>_-]{0,8}next goal\W{1,8}(\S.*)$", re.IGNORECASE | re.MULTILINE)
_WHY = re.compile(r"^[\s*#>_-]{0,8}why\W{1,8}(\S.*)$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Advice:
    """One sprint's recommendation."""

    sprint: str
    goal: str
    why: str
    taken: str | None
    """The sprint that took it up."""


def recommendation_of(analysis: str, asked: str = "") -> dict[str, str] | None:
    """The next goal and why, out of a validator's answer: its last lines "Next goal: …" and "Why: …", or JSON.

    None where there is none, and where it is the goal that was `asked`.
    """
    found = json_object(analysis) or {}
    goal, why = found.get("next_goal") or found.get("nextGoal"), found.get("why")
    if not isinstance(goal, str):
        lines = _GOAL.findall(analysis)
        reasons = _WHY.findall(analysis)
        goal, why = (lines[-1] if lines else ""), (reasons[-1] if reasons else "")
    # A goal has no control characters (check_goal), so they are left out here and not made visible.
    words = "".join(character if character.isprintable() else " " for character in goal)
    goal = clean_line(words.strip().strip('"*_`“”'), _MAX_GOAL)
    if asked and same_goal(goal, asked):
        return None
    try:
        return {"goal": check_goal(goal), "why": clean_line(why or "", 1000).strip('"*_`“”')}
    except UsageProblem:
        return None


def advice(store: Store) -> list[Advice]:
    """Every sprint's recommendation, oldest first. Raises StoreError for a results folder that cannot be read."""
    summaries: dict[str, dict[str, Any]] = {}
    for run in store.runs():
        try:
            summaries[run] = store.summary(run)
        except StoreError:
            continue
    taken = {str(summary.get("follows")): run for run, summary in summaries.items() if summary.get("follows")}
    found = []
    for run, summary in summaries.items():
        if said := _recommendation(summary):
            found.append(Advice(run, said[0], said[1], taken.get(run)))
    return found


def advised_goal(store: Store, sprint: str) -> tuple[str, str]:
    """A sprint's id and the goal that it recommends. Raises UsageProblem, StoreError."""
    run = store.existing(sprint).id
    said = _recommendation(store.summary(run))
    if said is None:
        raise UsageProblem(f"{run} recommends no next goal")
    return run, check_goal(said[0])


def _recommendation(summary: dict[str, Any]) -> tuple[str, str] | None:
    """Older summaries lack it, and anybody may have edited one."""
    try:
        said = summary["phases"]["validation"]["recommendation"]
        if same_goal(said["goal"], str(summary.get("goal"))):
            return None
        return clean_line(said["goal"], 10_000), clean_line(said.get("why") or "", 1000)
    except (KeyError, TypeError, AttributeError):
        return None
