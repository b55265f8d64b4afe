"""What was measured, by name: {"docker-run/cold/torch/gone": {"median_s": 1.66, "n": 20}, ...}."""

import statistics
from collections.abc import Sequence

Figures = dict[str, dict[str, float]]


def figure(unit: str, values: Sequence[float]) -> dict[str, float]:
    """The median, under a name that says in what, and of how many."""
    return {f"median_{unit}": float(f"{statistics.median(values):.5g}"), "n": len(values)}


def median_of(found: Figures, name: str) -> float:
    """The median of that name, in whatever it was measured. Raises KeyError where nothing was measured."""
    return next(value for key, value in found[name].items() if key.startswith("median_"))
