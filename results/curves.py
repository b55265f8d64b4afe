"""curves.png: learning curves by step, and the outcome of every confirming run.

Names come from the experiment, so they are drawn as plain text: never as markup, never at full length.
"""

import io
import itertools
import math
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from executor.experiment import MetricRecord, PlanRecord, RunRecord
from results.metrics import AnyRecord

if TYPE_CHECKING:  # loaded when something is drawn: it takes half a second that most commands do not need
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers and in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_MAX_LINES = 8
_MAX_POINTS = 2000
_TOO_LARGE = 1e100  # beyond this, axes cannot be scaled

Points = list[tuple[float, float]]


def draw_curves(records: Iterable[AnyRecord], path: Path) -> bool:
    """Draws what there is to `path`, whole or not at all; False when there is nothing to draw."""
    found = list(records)
    plan = next((record for record in found if isinstance(record, PlanRecord)), None)
    metrics = [record for record in found if isinstance(record, MetricRecord)]
    runs = [record for record in found if isinstance(record, RunRecord) and record.phase == "confirm"]
    if plan is not None and runs:
        figure = _comparison(plan, metrics, runs)
    elif metrics:
        figure = _single(metrics)
    else:
        return False
    _save(figure, path)
    return True


def _comparison(plan: PlanRecord, metrics: Sequence[MetricRecord], runs: Sequence[RunRecord]) -> "Figure":
    figure = _figure(11, 4.5)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    shown = _curve_name(plan, metrics)
    seeds = set(plan.seeds)
    for index, arm in enumerate(plan.arms[:_MAX_LINES]):
        curves: dict[int | None, Points] = defaultdict(list)
        for record in metrics:
            planned = record.phase == "confirm" and record.seed in seeds
            if planned and record.arm == arm and shown in record.values:
                curves[record.seed].append((_step(record, curves[record.seed]), record.values[shown]))
        _draw_arm(left, _plain(arm), list(curves.values()), _COLOURS[index])
    _label(left, "step", _plain(shown or plan.primary), f"Learning curves by {_plain(plan.factor)}")
    if left.has_data():
        left.legend(frameon=False)
    _draw_outcomes(right, plan, runs)
    return figure


def _curve_name(plan: PlanRecord, metrics: Sequence[MetricRecord]) -> str:
    """The metric to draw: the primary one if it was logged while training, else the one that was logged most."""
    counts: dict[str, int] = defaultdict(int)
    for record in metrics:
        if record.phase == "confirm":
            for name in record.values:
                counts[name] += 1
    if plan.primary in counts or not counts:
        return plan.primary
    return max(counts, key=lambda name: counts[name])


def _draw_arm(axes: "Axes", label: str, curves: Sequence[Points], colour: str) -> None:
    for curve in curves:
        axes.plot(*_finite(curve), color=colour, alpha=0.2, linewidth=0.8)
    steps = sorted({step for curve in curves for step, _ in curve})
    by_step: dict[float, list[float]] = {step: [] for step in steps[:_MAX_POINTS]}
    for step, value in itertools.chain.from_iterable(curves):
        if step in by_step:
            by_step[step].append(value)
    # Only steps that every run reached: a mean over fewer runs would jump.
    means = [(step, float(np.mean(values))) for step, values in by_step.items() if len(values) == len(curves)]
    axes.plot(*_finite(means), color=colour, linewidth=2, label=f"{label} ({len(curves)} runs)")


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


def _single(metrics: Sequence[MetricRecord]) -> "Figure":
    lines: dict[str, Points] = defaultdict(list)
    for record in metrics:
        for name, value in record.values.items():
            if name in lines or len(lines) < _MAX_LINES:
                lines[name].append((_step(record, lines[name]), value))
    columns = min(2, len(lines))
    rows = math.ceil(len(lines) / columns)
    figure = _figure(5.5 * columns, 3.2 * rows)
    for index, (name, points) in enumerate(lines.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.plot(*_finite(points), color=_COLOURS[0], linewidth=1.5, marker="." if len(points) < 50 else None)
        _label(axes, "step", "", _plain(name, 40))
    return figure


def _step(record: MetricRecord, before: Points) -> float:
    return record.step if record.step is not None and abs(record.step) < _TOO_LARGE else float(len(before))


def _finite(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Thinned to what a picture can show, with gaps where a value is not finite or too large to scale."""
    stride = max(1, len(points) // _MAX_POINTS)
    thinned = points[::stride]
    return (
        [step for step, _ in thinned],
        [value if math.isfinite(value) and abs(value) < _TOO_LARGE else math.nan for _, value in thinned],
    )


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
