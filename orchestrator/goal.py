"""What may be a goal."""

from orchestrator.errors import UsageProblem

MAX_GOAL = 10_000
"""Characters. A goal is a sentence; a longer text would crowd everything else out of the agents' prompts."""


def check_goal(goal: str) -> str:
    """The goal on one line. Raises UsageProblem when it is empty, too long, or no text."""
    if len(goal) > MAX_GOAL:
        raise UsageProblem(f"the goal has {len(goal):,} characters; at most {MAX_GOAL:,} are accepted")
    line = " ".join(goal.split())
    if not line:
        raise UsageProblem('the goal is empty; state one, such as "Compare AdamW vs. Lion on a small transformer"')
    if any(not character.isprintable() for character in line):
        raise UsageProblem("the goal contains control characters")
    return line


def same_goal(one: str, other: str) -> bool:
    """Whether they ask the same in the same words, however these are spaced, written large or ended."""
    return _words(one) == _words(other)


def _words(goal: str) -> str:
    return " ".join(goal.split()).rstrip(".!? ").casefold()
