"""Where tuning begins: at what an earlier sprint's tuning chose, where the prompt tells of one that asked the same."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from orchestrator.local_agents.playbook.goals import read_goal
from orchestrator.local_agents.playbook.study import Study, UnknownGoal
from orchestrator.recall import HEADING

_MANY = 64  # GPUs: what has run is not refused for want of them


def from_earlier(study: Study, prompt: str) -> Study:
    """The study with its grids around earlier choices; as it was where none is told.

    Every arm keeps as many values, and its grid the same ratios: only the middle moves.
    """
    for known in _told(prompt):
        tuned = known.get("tuned")
        if isinstance(tuned, dict) and _same(study, known):
            moved = {name: _around(study, name, values, tuned) for name, values in study.tune.items()}
            if moved != {name: _per_arm(study, values) for name, values in study.tune.items()}:
                chosen = "; ".join(f"{arm.name}: {_words(tuned.get(arm.name))}" for arm in study.arms)
                told = f"Tuning begins around what {str(known.get('sprint'))[:60]} chose ({chosen})."
                return replace(study, tune=dict(moved), earlier=told)
    return study


def _told(prompt: str) -> Iterator[dict[str, Any]]:
    """What stands under the last such heading: a sprint's own part comes after all that others said."""
    for line in prompt.rpartition(HEADING)[2].splitlines():
        if line.startswith('{"sprint"'):
            try:
                known = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(known, dict):
                yield known


def _same(study: Study, known: dict[str, Any]) -> bool:
    """Whether the earlier goal was this very comparison."""
    try:
        other = read_goal(str(known.get("goal")), _MANY)
    except UnknownGoal:
        return False
    return (other.factor, other.harness, other.arms) == (study.factor, study.harness, study.arms)


def _per_arm(study: Study, values: dict[str, list[float]] | list[float]) -> dict[str, list[float]]:
    return {arm.name: values if isinstance(values, list) else values[arm.name] for arm in study.arms}


def _around(
    study: Study, name: str, values: dict[str, list[float]] | list[float], tuned: dict[str, Any]
) -> dict[str, list[float]]:
    """Every arm's grid moved, or none: a value that only one arm brings along would be more tuning for that arm."""
    grids = _per_arm(study, values)
    moved = {arm: _moved(name, grid, tuned.get(arm)) for arm, grid in grids.items()}
    return {arm: grid for arm, grid in moved.items() if grid} if all(moved.values()) else grids


def _moved(name: str, grid: list[float], config: Any) -> list[float] | None:
    """The grid with what was chosen in its middle; None where nothing usable was."""
    chosen, middle = config.get(name) if isinstance(config, dict) else None, grid[len(grid) // 2]
    if (
        not isinstance(chosen, int | float)
        or chosen <= 0
        or middle <= 0
        or not min(grid) / 100 <= chosen <= 100 * max(grid)
    ):
        return None
    return [float(f"{value * chosen / middle:.3g}") for value in grid]


def _words(config: Any) -> str:
    if not isinstance(config, dict):
        return "nothing"
    return ", ".join(f"{str(key)[:20]} {value:g}" for key, value in config.items() if isinstance(value, int | float))
