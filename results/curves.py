"""curves.png: the curves and outcomes of a comparison as its report has them, or whatever else was measured, by step.

Names come from the experiment, so they are drawn as plain text: never as markup, never at full length. Lines are
thinned to what a picture can show; they break where a value is not finite or the step goes back, and what is not
finite is marked at the edge.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from policies.text import for_drawing
from results.report.figures import COLOURS, blank, comparison, png, styled
from results.series import LAB, Floats, Series, oddities, read_folder, thin
from results.store import CURVES, RunFolder

if TYPE_CHECKING:  # loaded when something is drawn: it takes half a second that most commands do not need
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_PANELS = 8
_MAX_LINES = 8
_MAX_POINTS = 2000
_TOO_LARGE = 1e100  # beyond this, axes cannot be scaled


def draw_run(folder: Path) -> bool:
    """Draws what a run's folder holds to its curves.png, whole or not at all; False when there is nothing to draw."""
    found = read_folder(folder)
    picture = comparison(found.records, found.series) or (_drawn(found.series) if found.series else None)
    if picture is None:
        return False
    RunFolder(folder).write_bytes(CURVES, picture)
    return True


def _drawn(series: Sequence[Series]) -> bytes:
    with styled():
        return png(_panels(series))


def _panels(series: Sequence[Series]) -> "Figure":
    """A panel for each name; in it a line for each training, or for each origin."""
    by_name: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        if one.name in by_name or len(by_name) < _MAX_PANELS:
            by_name[one.name].append(one)
    columns = min(2, len(by_name))
    rows = math.ceil(len(by_name) / columns)
    extracted = all(one.origin != LAB for one in series)
    figure = blank((5.5 * columns, 3.2 * rows + (0.3 if extracted else 0)))
    if extracted:
        title = "Read from the experiment's output and files: nothing was recorded with lab.log"
        figure.suptitle(title if columns > 1 else title.replace(": ", ":\n"), fontsize=9, color="0.35")
    for index, (name, lines) in enumerate(by_name.items()):
        _draw_panel(figure.add_subplot(rows, columns, index + 1), name, lines)
    return figure


def _draw_panel(axes: "Axes", name: str, lines: Sequence[Series]) -> None:
    drawn = lines[:_MAX_LINES]
    for index, line in enumerate(drawn):
        thinned, colour = _thinned(line, _MAX_POINTS), COLOURS[index]
        marker = "." if len(thinned.values) < 50 else None
        axes.plot(*_line(thinned), color=colour, linewidth=1.5, marker=marker, label=for_drawing(_training(line)))
        _mark_gaps(axes, line, colour)
    origins = {line.origin for line in lines}
    title = for_drawing(name, 40)
    if origins != {LAB} and len(origins) == 1:
        title = f"{title} (from {for_drawing(next(iter(origins)))})"
    if len(drawn) < len(lines):
        title = f"{title}, {len(drawn)} of {len(lines)} lines"
    _label(axes, _with_notes("step", [(for_drawing(_training(line)), line) for line in drawn]), "", title)
    if len(drawn) > 1:
        axes.legend(frameon=False, fontsize=8)


def _training(line: Series) -> str:
    parts = [line.arm, None if line.seed is None else f"seed {line.seed}", line.phase]
    return " ".join(part for part in parts if part) or line.origin


def _with_notes(label: str, lines: Sequence[tuple[str, Series]]) -> str:
    """The axis' label, and below it what is odd about the lines."""
    odd = [(name, told) for name, line in lines if (told := [*oddities(line), *_left_out(line)])]
    notes = [f"{name}: {', '.join(told)}" if len(lines) > 1 else ", ".join(told) for name, told in odd[:3]]
    if len(odd) > 3:
        notes.append(f"and {len(odd) - 3} more lines with such")
    return "\n".join([label, *notes])


def _left_out(series: Series) -> list[str]:
    """What no axis can hold, in words."""
    size = np.abs(series.values)
    count = int(np.count_nonzero((size >= _TOO_LARGE) & (size < np.inf)))
    return [f"{count} too large to draw"] if count else []


def _steps(series: Series) -> Floats:
    """Steps that an axis can hold; a point with another stands at its number."""
    return np.where(np.abs(series.steps) < _TOO_LARGE, series.steps, np.arange(len(series.steps)))


def _drawable(values: Floats) -> Floats:
    """NaN where a value is not finite, or too large to scale an axis to."""
    return np.where(np.abs(values) < _TOO_LARGE, values, np.nan)


def _thinned(series: Series, points: int) -> Series:
    """Thinned, with infinities for what is too large: the shape that counts is that of what can be drawn."""
    values = series.values
    return thin(
        replace(series, values=np.where(np.abs(values) >= _TOO_LARGE, np.copysign(np.inf, values), values)), points
    )


def _line(series: Series) -> Floats:
    """Steps and values, two rows, broken where the step goes back and at the end."""
    steps = _steps(series)
    places = [*(np.flatnonzero(steps[1:] < steps[:-1]) + 1).tolist(), len(steps)]
    return np.array([np.insert(steps, places, np.nan), np.insert(_drawable(series.values), places, np.nan)])


def _mark_gaps(axes: "Axes", series: Series, colour: str) -> None:
    """What cannot be drawn in its place, at the edge: NaN as a cross at the bottom, infinities as arrows."""
    if np.all(np.abs(series.values) < _TOO_LARGE):
        return
    thinned = _thinned(series, 400)
    steps, values = _steps(thinned), thinned.values
    for where, marker, height in (
        (np.isnan(values), "x", 0.03),
        (values == np.inf, "^", 0.97),
        (values == -np.inf, "v", 0.03),
    ):
        if where.any():
            places = np.full(np.count_nonzero(where), height)
            axes.scatter(steps[where], places, marker=marker, color=colour, s=22, transform=axes.get_xaxis_transform())


def _label(axes: "Axes", x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
