"""curves.png: learning curves by step, and the outcome of every confirming run.

Names come from the experiment, so they are drawn as plain text: never as markup, never at full length. Lines are
thinned to what a picture can show; they break where a value is not finite or the step goes back, and what is not
finite is marked at the edge.
"""

import functools
import io
import math
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from executor.experiment import AnyRecord, Landmark, MetricRecord, PlanRecord, RunRecord
from results.series import LAB, Floats, Series, oddities, read_folder, series_of, thin

if TYPE_CHECKING:  # loaded when something is drawn: it takes half a second that most commands do not need
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers and in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_MAX_PANELS = 8
_MAX_LINES = 8
_MAX_POINTS = 2000
_ALL_POINTS = 40_000  # of one arm's curves together
_TOO_LARGE = 1e100  # beyond this, axes cannot be scaled


def draw_run(folder: Path) -> bool:
    """Draws what a run's folder holds to its curves.png, whole or not at all; False when there is nothing to draw."""
    found = read_folder(folder)
    return _draw(found.records, found.series, folder / "curves.png")


def draw_curves(records: Iterable[AnyRecord], path: Path) -> bool:
    """The same from records in memory, to `path`."""
    found = list(records)
    others = [record for record in found if not isinstance(record, MetricRecord)]
    return _draw(others, series_of(record for record in found if isinstance(record, MetricRecord)), path)


def _draw(records: Sequence[Landmark], series: Sequence[Series], path: Path) -> bool:
    plan = next((record for record in records if isinstance(record, PlanRecord)), None)
    runs = [record for record in records if isinstance(record, RunRecord) and record.phase == "confirm"]
    if plan is not None and runs:
        figure = _comparison(plan, series, runs)
    elif series:
        figure = _panels(series)
    else:
        return False
    _save(figure, path)
    return True


def _comparison(plan: PlanRecord, series: Sequence[Series], runs: Sequence[RunRecord]) -> "Figure":
    figure = _figure(11, 4.5)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    seeds = set(plan.seeds)
    confirming = [one for one in series if one.phase == "confirm"]
    shown = _curve_name(plan, confirming)
    notes = []
    for index, arm in enumerate(plan.arms[:_MAX_LINES]):
        curves = [one for one in confirming if one.name == shown and one.arm == arm and one.seed in seeds]
        _draw_arm(left, _plain(arm), curves, _COLOURS[index])
        notes += [(f"{_plain(arm)}, seed {one.seed}", one) for one in curves]
    _label(left, _with_notes("step", notes), _plain(shown or plan.primary), f"Learning curves by {_plain(plan.factor)}")
    if left.has_data():  # looking for the best corner would take longer than all else
        left.legend(frameon=False, loc="upper right" if plan.lower_is_better else "lower right")
    _draw_outcomes(right, plan, runs)
    return figure


def _curve_name(plan: PlanRecord, series: Sequence[Series]) -> str:
    """The metric to draw: the primary one if it was logged while training, else the one that was logged most."""
    counts: dict[str, int] = defaultdict(int)
    for one in series:
        counts[one.name] += len(one.values)
    if plan.primary in counts or not counts:
        return plan.primary
    return max(counts, key=lambda name: counts[name])


def _draw_arm(axes: "Axes", label: str, curves: Sequence[Series], colour: str) -> None:
    points = min(_MAX_POINTS, _ALL_POINTS // max(1, len(curves)))
    lines = [_line(_thinned(curve, points)) for curve in curves]
    for curve in curves:
        _mark_gaps(axes, curve, colour)
    if lines:  # one path for all of them: a study may have hundreds
        axes.plot(*np.hstack(lines), color=colour, alpha=0.2, linewidth=0.8)
    axes.plot(*_line(_mean(curves)), color=colour, linewidth=2, label=f"{label} ({len(curves)} runs)")


def _mean(curves: Sequence[Series]) -> Series:
    """The mean over runs, only at steps that every run reached: a mean over fewer would jump."""
    steps, values = np.empty(0), np.empty(0)
    if curves:
        each = [_by_step(curve) for curve in curves]
        steps = functools.reduce(np.intersect1d, (own for own, _ in each))
        values = sum((values[np.searchsorted(own, steps)] for own, values in each), np.zeros(len(steps))) / len(each)
    return thin(Series("", None, None, None, LAB, steps, values, np.full(len(steps), np.nan)), _MAX_POINTS)


def _by_step(curve: Series) -> tuple[Floats, Floats]:
    """Steps in order, each once, and the last value at each."""
    steps, places = np.unique(_steps(curve)[::-1], return_index=True)
    return steps, _drawable(curve.values)[::-1][places]


def _draw_outcomes(axes: "Axes", plan: PlanRecord, runs: Sequence[RunRecord]) -> None:
    by_seed: dict[int, dict[str, float]] = defaultdict(dict)
    for run in runs:
        value = run.values.get(plan.primary, math.nan)
        if run.status == "ok" and run.seed in plan.seeds and abs(value) < _TOO_LARGE:
            by_seed[run.seed][run.arm] = run.values[plan.primary]
    arms = plan.arms[:_MAX_LINES]
    for values in by_seed.values():
        places = [index for index, arm in enumerate(arms) if arm in values]
        axes.plot(places, [values[arms[index]] for index in places], color="0.8", linewidth=0.8, zorder=1)
    for index, arm in enumerate(arms):
        dots = [values[arm] for values in by_seed.values() if arm in values]
        axes.scatter([index] * len(dots), dots, color=_COLOURS[index], s=28, zorder=2)
        if dots:
            axes.hlines(float(np.mean(dots)), index - 0.2, index + 0.2, color=_COLOURS[index], linewidth=2, zorder=3)
    axes.set_xticks(range(len(arms)), [_plain(arm, 16) for arm in arms])
    axes.set_xlim(-0.5, len(arms) - 0.5)
    better = "lower" if plan.lower_is_better else "higher"
    _label(axes, _plain(plan.factor), f"{_plain(plan.primary)} ({better} is better)", "Every run, paired by seed")


def _panels(series: Sequence[Series]) -> "Figure":
    """A panel for each name; in it a line for each training, or for each origin."""
    by_name: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        if one.name in by_name or len(by_name) < _MAX_PANELS:
            by_name[one.name].append(one)
    columns = min(2, len(by_name))
    rows = math.ceil(len(by_name) / columns)
    extracted = all(one.origin != LAB for one in series)
    figure = _figure(5.5 * columns, 3.2 * rows + (0.3 if extracted else 0))
    if extracted:
        title = "Read from the experiment's output and files: nothing was recorded with lab.log"
        figure.suptitle(title if columns > 1 else title.replace(": ", ":\n"), fontsize=9, color="0.35")
    for index, (name, lines) in enumerate(by_name.items()):
        _draw_panel(figure.add_subplot(rows, columns, index + 1), name, lines)
    return figure


def _draw_panel(axes: "Axes", name: str, lines: Sequence[Series]) -> None:
    drawn = lines[:_MAX_LINES]
    for index, line in enumerate(drawn):
        thinned, colour = _thinned(line, _MAX_POINTS), _COLOURS[index]
        marker = "." if len(thinned.values) < 50 else None
        axes.plot(*_line(thinned), color=colour, linewidth=1.5, marker=marker, label=_plain(_training(line)))
        _mark_gaps(axes, line, colour)
    origins = {line.origin for line in lines}
    title = _plain(name, 40)
    if origins != {LAB} and len(origins) == 1:
        title = f"{title} (from {_plain(next(iter(origins)))})"
    if len(drawn) < len(lines):
        title = f"{title}, {len(drawn)} of {len(lines)} lines"
    _label(axes, _with_notes("step", [(_plain(_training(line)), line) for line in drawn]), "", title)
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


def _plain(text: str, limit: int = 32) -> str:
    """`text` without control characters, without what matplotlib reads as mathematics, and not too long."""
    shown = "".join(character if character.isprintable() else "?" for character in text).replace("$", r"\$")
    shown = f" {shown}" if shown.startswith("_") else shown  # a legend leaves such labels out
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(picture.getvalue())
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)
