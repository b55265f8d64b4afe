"""A report's figures, drawn once and written twice: as PNG, and as SVG that takes the page's colours. Two of them together
are a comparison's curves.png.

Names come from the experiment, so they are drawn as plain text: never as markup, never at full length. A figure that cannot
be told without its colours has its numbers in a table beside it.
"""

import io
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from executor.experiment import Landmark, PlanRecord, RunRecord, Setting
from policies.text import for_drawing
from results.courses import Course, Training, courses, curve_metric
from results.findings import Analysis
from results.series import Series
from results.statistics import Floats, t_interval, usable
from results.trainings import outcomes_of, planned, status_of

if TYPE_CHECKING:  # loaded when something is drawn: it takes half a second that most commands do not need
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers and in grey. Black and yellow, which one of a page's two
# grounds would swallow, come last and as greys.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7f7f7f", "#b8860b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_INK = "#010203"
"""Stands for the page's ink, which differs between dark and light."""
_POINTS = 200
_MOST_LEVEL = 3
"""Names of arms that have room beside each other."""


@dataclass(frozen=True)
class Picture:
    """One figure."""

    name: str
    """Of its file, without extension."""
    title: str
    alt: str
    """What it shows, for those who do not see it."""
    svg: str
    png: bytes


@dataclass(frozen=True)
class _Study:
    """What there is to draw of a comparison."""

    plan: PlanRecord
    runs: list[RunRecord]
    complete: list[RunRecord]
    """Those that count in the comparison, and gave a number."""
    metric: str
    """Of the curves."""
    curves: dict[Training, Course]


def figures(records: Sequence[Landmark], series: Sequence[Series], analysis: Analysis) -> list[Picture]:
    """Every figure that there is something for."""
    study = _study(records, series)
    if study is None or not analysis.contrasts:
        return []
    found = [_effect(study.plan, analysis), _outcomes(study)]
    found += [_curves(study, unit) for unit in _ALONG if _extends(study, unit)]
    tuning = [run for run in study.runs if run.phase == "tune" and run.status != "skipped"]
    found += [_sensitivity(study.plan, tuning, analysis, key) for key in _numeric(tuning)]
    return found


def comparison(records: Sequence[Landmark], series: Sequence[Series]) -> bytes | None:
    """Learning curves and outcomes side by side, as PNG; None where nothing was compared."""
    study = _study(records, series)
    if study is None or not study.complete:
        return None
    with styled():
        curves = _extends(study, "step")
        figure = blank((11.0, 4.5) if curves else (5.5, 4.5))
        *left, right = figure.subplots(1, 2, width_ratios=(3, 2)) if curves else [figure.subplots()]
        for axes in left:
            _draw_curves(axes, study, "step")
            axes.set_title(f"Learning curves by {for_drawing(study.plan.factor)}", loc="left", fontsize=11)
        _draw_outcomes(right, study)
        right.set_title("Every run, paired by seed", loc="left", fontsize=11)
        for axes in figure.axes:
            _tidy(axes)
        return png(figure)


def _study(records: Sequence[Landmark], series: Sequence[Series]) -> _Study | None:
    plan = next((record for record in records if isinstance(record, PlanRecord)), None)
    if plan is None:
        return None
    runs = [record for record in records if isinstance(record, RunRecord)]
    complete = [run for run in planned(plan, runs) if status_of(run, plan.primary) == "ok"]
    metric = curve_metric(plan, series)
    curves = courses(series, complete, metric) if metric is not None else {}
    return _Study(plan, runs, complete, metric or "", curves)


def _effect(plan: PlanRecord, analysis: Analysis) -> Picture:
    """Every contrast's mean difference with its interval, and zero."""
    shown = analysis.contrasts[: len(COLOURS)]

    def draw(axes: "Axes") -> None:
        axes.axvline(0, color=_INK, linewidth=0.8)
        for row, contrast in enumerate(shown):
            seeds = list(contrast.differences.values())
            colour = COLOURS[plan.arms.index(contrast.arm) % len(COLOURS)]
            axes.scatter(seeds, [row + 0.18] * len(seeds), color=colour, s=14, alpha=0.6, linewidths=0)
            axes.hlines(row, contrast.low, contrast.high, color=colour, linewidth=3)
            axes.plot([contrast.mean], [row], marker="D", color=colour, markersize=7)
        axes.set_yticks(
            range(len(shown)), [f"{for_drawing(one.arm, 18)} − {for_drawing(one.baseline, 18)}" for one in shown]
        )
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel(f"paired difference in {for_drawing(plan.primary)}, 95 % t interval")

    told = "; ".join(
        f"{one.arm} minus {one.baseline}: {one.mean:+.4g}, from {one.low:+.4g} to {one.high:+.4g}" for one in shown
    )
    return _figure("effect", "The effect, with its interval and every pair", told, draw, (7.0, 1.2 + 0.55 * len(shown)))


def _outcomes(study: _Study) -> Picture:
    seeds = len({run.seed for run in study.complete})
    alt = f"One dot for each of {seeds} seeds and each arm, those of one seed joined by a line; bars are means."
    return _figure("outcomes", "Every run, paired by seed", alt, lambda axes: _draw_outcomes(axes, study), (7.0, 3.6))


def _draw_outcomes(axes: "Axes", study: _Study) -> None:
    arms, found = study.plan.arms[: len(COLOURS)], outcomes_of(study.plan, study.complete)
    for seed in dict.fromkeys(study.plan.seeds):
        places = [index for index, arm in enumerate(arms) if seed in found[arm]]
        axes.plot(places, [found[arms[index]][seed] for index in places], color=_INK, alpha=0.25, linewidth=0.8)
    for index, arm in enumerate(arms):
        dots = list(found[arm].values())
        axes.scatter([index] * len(dots), dots, color=COLOURS[index], marker=MARKERS[index], s=30, zorder=2)
        if dots:
            mean = float(np.mean(dots))
            axes.hlines(mean, index - 0.2, index + 0.2, color=COLOURS[index], linewidth=2.5, zorder=3)
    axes.set_xticks(range(len(arms)), [for_drawing(arm, 16) for arm in arms])
    if len(arms) > _MOST_LEVEL:
        axes.tick_params(axis="x", labelrotation=15)
    axes.set_xlim(-0.5, len(arms) - 0.5)
    better = "lower" if study.plan.lower_is_better else "higher"
    axes.set_ylabel(f"{for_drawing(study.plan.primary)} ({better} is better)")


_ALONG: dict[str, tuple[str, Callable[[Course], Floats]]] = {
    "step": ("step", lambda course: course.steps),
    "second": ("seconds of training", lambda course: course.seconds),
}
"""What curves are drawn along: its label, and where it is."""


def _extends(study: _Study, unit: str) -> bool:
    """Whether there is an arm whose curve has a length: one point of each training makes no line."""
    _, along = _ALONG[unit]
    for arm in study.plan.arms[: len(COLOURS)]:
        places = [along(course) for (name, _), course in study.curves.items() if name == arm]
        if places and max(one.min() for one in places) < min(one.max() for one in places):
            return True
    return False


def _curves(study: _Study, unit: str) -> Picture:
    told: list[str] = []
    made = _figure(
        f"curves_by_{unit}",
        f"Learning curves by {unit}, with 95 % intervals",
        "",
        lambda axes: told.extend(_draw_curves(axes, study, unit)),
        (7.0, 3.6),
    )
    return replace(made, alt=f"Mean {study.metric} over seeds by {unit}: {'; '.join(told)}.")


def _draw_curves(axes: "Axes", study: _Study, unit: str) -> list[str]:
    """Means over seeds with t intervals, as far as every run of the arm got; where each begins and ends, in words."""
    told, planned_runs = [], len(set(study.plan.seeds))
    label, along = _ALONG[unit]
    for index, arm in enumerate(study.plan.arms[: len(COLOURS)]):
        own = [course for (name, _), course in study.curves.items() if name == arm]
        if not own:
            continue
        grid, values = _resampled([(along(course), course.values) for course in own])
        means = values.mean(axis=0)
        count = f"{len(own)} runs" if len(own) == planned_runs else f"{len(own)} of {planned_runs} runs"
        axes.plot(grid, means, color=COLOURS[index], linewidth=2, label=f"{for_drawing(arm)} ({count})")
        if len(own) > 1:
            low, high = np.array([t_interval(column) for column in values.T]).T
            axes.fill_between(grid, low, high, color=COLOURS[index], alpha=0.2, linewidth=0)
        told.append(f"{arm} from {means[0]:.4g} to {means[-1]:.4g}")
    axes.set_xlabel(label)
    axes.set_ylabel(for_drawing(study.metric))
    _legend(axes)
    return told


def _resampled(curves: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """The curves at common places, between the latest beginning and the earliest end: (places,), (curves, places)."""
    ordered = []
    for places, values in curves:
        order = np.argsort(places, kind="stable")
        ordered.append((places[order], values[order]))
    first, last = max(places[0] for places, _ in ordered), min(places[-1] for places, _ in ordered)
    shared = ordered[0][0]
    if all(np.array_equal(places, shared) for places, _ in ordered) and len(shared) <= _POINTS:
        grid = np.unique(shared)
    else:
        grid = np.linspace(first, max(first, last), _POINTS)
    return grid, np.array([np.interp(grid, places, values) for places, values in ordered])


def _numeric(tuning: Iterable[RunRecord]) -> list[str]:
    """The parameters that were tuned over numbers."""
    values: dict[str, set[float]] = defaultdict(set)
    for run in tuning:
        for key, value in run.config.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and usable(value):
                values[key].add(float(value))
    return [key for key, found in values.items() if len(found) > 1][:4]


def _sensitivity(plan: PlanRecord, tuning: Sequence[RunRecord], analysis: Analysis, key: str) -> Picture:
    """What tuning saw of each arm: a line through the best at each value, the others (which differ in what else was tuned)
    as dots; a cross at the top is a run that failed or diverged."""
    select, better = plan.select or plan.primary, min if _lower(plan) else max
    chosen = {arm.name: arm.config.get(key) for arm in analysis.arms}
    lost = sum(run.status != "ok" for run in tuning)

    def draw(axes: "Axes") -> None:
        everything = []
        for index, arm in enumerate(plan.arms[: len(COLOURS)]):
            own = [run for run in tuning if run.arm == arm and usable(_number(run.config.get(key)))]
            fine = sorted(
                (_number(run.config[key]), run.values[select])
                for run in own
                if run.status == "ok" and usable(run.values.get(select, math.nan))
            )
            everything += [place for place, _ in fine]
            best_at = [better(group) for _, group in groupby(fine, key=lambda point: point[0])]
            axes.scatter(*_columns(fine), color=COLOURS[index], marker=MARKERS[index], s=22, alpha=0.45, linewidths=0)
            axes.plot(
                *_columns(best_at), color=COLOURS[index], marker=MARKERS[index], linewidth=1.5, label=for_drawing(arm)
            )
            taken = [point for point in best_at if point[0] == chosen.get(arm)]
            axes.plot(*_columns(taken), color=COLOURS[index], marker="o", markersize=14, fillstyle="none", linestyle="")
            bad = [_number(run.config[key]) for run in own if run.status != "ok"]
            everything += bad
            axes.plot(
                bad, [0.97] * len(bad), "x", color=COLOURS[index], transform=axes.get_xaxis_transform(), markersize=8
            )
        if everything and min(everything) > 0 and max(everything) / min(everything) > 5:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel(for_drawing(key))
        axes.set_ylabel(f"{for_drawing(select)} in tuning")
        _legend(axes)

    settings = "; ".join(f"{name}: {value}" for name, value in chosen.items())
    alt = (
        f"{select} over {key} for each arm: a line through the best at each value, the others as dots; "
        f"chosen: {settings}; {lost} trials failed or diverged (crosses at the top)."
    )
    return _figure(f"sensitivity_{_safe(key)}", f"Sensitivity to {for_drawing(key)}", alt, draw, (7.0, 3.4))


def _lower(plan: PlanRecord) -> bool:
    """Whether tuning took the smallest."""
    return plan.lower_is_better if plan.select_lower_is_better is None else plan.select_lower_is_better


def _number(value: Setting) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [place for place, _ in points], [value for _, value in points]


def _figure(name: str, title: str, alt: str, draw: Callable[["Axes"], None], size: tuple[float, float]) -> Picture:
    with styled(name):
        figure = blank(size)
        axes = figure.subplots()
        draw(axes)
        _tidy(axes)
        return Picture(name, title, alt, _svg(figure), png(figure))


def styled(name: str = "") -> AbstractContextManager[None]:
    """While something is drawn and written: in the page's ink, and no text is markup. name: what sets apart the ids of an SVG."""
    from matplotlib import rc_context

    return rc_context(
        {
            "svg.fonttype": "none",  # text stays text: it can be read out, searched, and takes the page's font
            "svg.hashsalt": name,
            "text.color": _INK,
            "axes.labelcolor": _INK,
            "axes.edgecolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
            "text.parse_math": False,
            "axes.formatter.use_mathtext": False,
        }
    )


def _tidy(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2, color=_INK)


def _legend(axes: "Axes") -> None:
    for text in axes.legend(frameon=False).get_texts():
        text.set_color(_INK)


def blank(size: tuple[float, float]) -> "Figure":
    """Of so many inches, with room for what stands around its axes."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _svg(figure: "Figure") -> str:
    """The figure as an element of a page: without what makes it a document, in the page's ink."""
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', text))
    # Several figures share a page: names that nothing refers to would be there twice.
    text = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", text)
    return re.sub(r'\s(width|height)="[\d.]+pt"', "", text, count=2)


def png(figure: "Figure") -> bytes:
    """The figure as a file."""
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120)
    return written.getvalue()


def _safe(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower())[:32] or "parameter"
