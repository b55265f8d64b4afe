"""A sweep's two pictures: how its trials went, and which parameters mattered.

Names come from the experiment, so they are drawn as plain text, never at full length.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from policies.text import for_drawing
from results.report.figures import blank, png, styled
from results.store import RunFolder

if TYPE_CHECKING:  # loaded when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HISTORY, IMPORTANCE = "history.png", "importance.png"
_BLUE, _INK = "#0072B2", "#444444"
_WITHOUT_VALUE = {"pruned": ("v", "#E69F00"), "failed": ("x", "#D55E00"), "lost": ("+", "#999999")}
_MAX_BARS = 20
_WIDE = 100.0
"""So much larger than the smallest is the largest value on a logarithmic axis."""

Trial = tuple[int, str, float | None]
"""Number, state and value."""


def draw_search(
    trials: Sequence[Trial], importances: Mapping[str, float], metric: str, maximize: bool, folder: Path
) -> None:
    """Writes history.png, and importance.png where there is something to say."""
    with styled():
        _history(trials, metric, maximize, folder)
        if importances:
            _importances(importances, folder)


def _history(trials: Sequence[Trial], metric: str, maximize: bool, folder: Path) -> None:
    figure, axes = _figure(3.8)
    done = [(number, value) for number, state, value in trials if state == "complete" and value is not None]
    numbers, values = [number for number, _ in done], [value for _, value in done]
    if values and min(values) > 0 and max(values) > _WIDE * min(values):
        axes.set_yscale("log")
    best = list(accumulate(values, max if maximize else min))
    last = [trials[-1][0]] if best else []  # it still is after the last trial
    axes.step([*numbers, *last], [*best, *best[-1:]], where="post", color=_INK, linewidth=1.2, label="best so far")
    axes.scatter(numbers, values, color=_BLUE, s=24, zorder=3, label=f"{len(done)} complete")
    for state, (mark, colour) in _WITHOUT_VALUE.items():
        places = [number for number, other, _ in trials if other == state]
        if places:
            height, edge = [0.0] * len(places), axes.get_xaxis_transform()
            axes.plot(places, height, mark, color=colour, transform=edge, clip_on=False, label=f"{len(places)} {state}")
    axes.margins(y=0.12)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("trial")
    axes.set_ylabel(for_drawing(metric))
    figure.legend(frameon=False, loc="outside upper right", ncols=5, fontsize="small")
    RunFolder(folder).write_bytes(HISTORY, png(figure))


def _importances(importances: Mapping[str, float], folder: Path) -> None:
    names = list(importances)[:_MAX_BARS]
    figure, axes = _figure(1.0 + 0.35 * len(names))
    bars = axes.barh(range(len(names)), [importances[name] for name in names], color=_BLUE, height=0.6)
    axes.bar_label(bars, fmt="{:.0%}", padding=4, fontsize="small")
    axes.set_yticks(range(len(names)), [for_drawing(name) for name in names])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("share in what makes a trial good (PED-ANOVA)")
    RunFolder(folder).write_bytes(IMPORTANCE, png(figure))


def _figure(height: float) -> tuple["Figure", "Axes"]:
    figure = blank((7.0, height))
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
