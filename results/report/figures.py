"""A report's figures, drawn once and written twice: as PNG, and as SVG that takes the page's colours.

Names come from the experiment, so they are drawn as plain text: never as markup, never at full length. A figure that cannot
be told without its colours has its numbers in a table beside it.
"""

import io
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from executor.experiment import Landmark, PlanRecord, RunRecord, Setting
from results.courses import Course, Training, courses, curve_metric
from results.findings import Analysis
from results.series import Series
from results.statistics import Floats, t_interval, usable

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


def figures(records: Sequence[Landmark], series: Sequence[Series], analysis: Analysis) -> list[Picture]:
    """Every figure that there is something for."""
    plan = next((record for record in records if isinstance(record, PlanRecord)), None)
    if plan is None or not analysis.contrasts:
        return []
    runs = [run for run in records if isinstance(run, RunRecord)]
    complete = [run for run in runs if run.phase == "confirm" and run.status == "ok" and run.seed in plan.seeds]
    metric = curve_metric(plan, series)
    curves = courses(series, complete, metric) if metric else {}
    found = [_effect(plan, analysis), _outcomes(plan, complete)]
    if metric and curves:
        found.append(_curves(plan, curves, metric, "step", lambda course: course.steps))
        found.append(_curves(plan, curves, metric, "second", lambda course: course.seconds))
    tuning = [run for run in runs if run.phase == "tune" and run.status != "skipped"]
    found += [_sensitivity(plan, tuning, analysis, key) for key in _numeric(tuning)]
    return found


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
        axes.set_yticks(range(len(shown)), [f"{_plain(one.arm, 18)} − {_plain(one.baseline, 18)}" for one in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel(f"paired difference in {_plain(plan.primary)}, 95 % t interval")

    told = "; ".join(
        f"{one.arm} minus {one.baseline}: {one.mean:+.4g}, from {one.low:+.4g} to {one.high:+.4g}" for one in shown
    )
    return _figure("effect", "The effect, with its interval and every pair", told, draw, (7.0, 1.2 + 0.55 * len(shown)))


def _outcomes(plan: PlanRecord, runs: Sequence[RunRecord]) -> Picture:
    by_seed: dict[int, dict[str, float]] = defaultdict(dict)
    for run in runs:
        value = run.values.get(plan.primary, math.nan)
        if usable(value):
            by_seed[run.seed][run.arm] = value
    arms = plan.arms[: len(COLOURS)]

    def draw(axes: "Axes") -> None:
        for values in by_seed.values():
            places = [index for index, arm in enumerate(arms) if arm in values]
            axes.plot(places, [values[arms[index]] for index in places], color=_INK, alpha=0.25, linewidth=0.8)
        for index, arm in enumerate(arms):
            dots = [values[arm] for values in by_seed.values() if arm in values]
            axes.scatter([index] * len(dots), dots, color=COLOURS[index], marker=MARKERS[index], s=30, zorder=2)
            if dots:
                mean = float(np.mean(dots))
                axes.hlines(mean, index - 0.2, index + 0.2, color=COLOURS[index], linewidth=2.5, zorder=3)
        axes.set_xticks(range(len(arms)), [_plain(arm, 16) for arm in arms])
        axes.set_xlim(-0.5, len(arms) - 0.5)
        better = "lower" if plan.lower_is_better else "higher"
        axes.set_ylabel(f"{_plain(plan.primary)} ({better} is better)")

    alt = f"One dot for each of {len(by_seed)} seeds and each arm, those of one seed joined by a line; bars are means."
    return _figure("outcomes", "Every run, paired by seed", alt, draw, (7.0, 3.6))


def _curves(
    plan: PlanRecord,
    curves: Mapping[Training, Course],
    metric: str,
    unit: str,
    along: Callable[[Course], Floats],
) -> Picture:
    """Means over seeds with t intervals, as far as every run of the arm got."""
    told = []

    def draw(axes: "Axes") -> None:
        for index, arm in enumerate(plan.arms[: len(COLOURS)]):
            own = [course for (name, _), course in curves.items() if name == arm]
            if not own:
                continue
            grid, values = _resampled([(along(course), course.values) for course in own])
            means = values.mean(axis=0)
            axes.plot(grid, means, color=COLOURS[index], linewidth=2, label=f"{_plain(arm)} ({len(own)} runs)")
            if len(own) > 1:
                low, high = np.array([t_interval(column) for column in values.T]).T
                axes.fill_between(grid, low, high, color=COLOURS[index], alpha=0.2, linewidth=0)
            told.append(f"{arm} from {means[0]:.4g} to {means[-1]:.4g}")
        axes.set_xlabel("step" if unit == "step" else "seconds of training")
        axes.set_ylabel(_plain(metric))
        legend = axes.legend(frameon=False)
        for text in legend.get_texts():
            text.set_color(_INK)

    made = _figure(f"curves_by_{unit}", f"Learning curves by {unit}, with 95 % intervals", "", draw, (7.0, 3.6))
    return Picture(made.name, made.title, f"Mean {metric} over seeds by {unit}: {'; '.join(told)}.", made.svg, made.png)


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
            axes.plot(*_columns(best_at), color=COLOURS[index], marker=MARKERS[index], linewidth=1.5, label=_plain(arm))
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
        axes.set_xlabel(_plain(key))
        axes.set_ylabel(f"{_plain(select)} in tuning")
        for text in axes.legend(frameon=False).get_texts():
            text.set_color(_INK)

    settings = "; ".join(f"{name}: {value}" for name, value in chosen.items())
    alt = (
        f"{select} over {key} for each arm: a line through the best at each value, the others as dots; "
        f"chosen: {settings}; {lost} trials failed or diverged (crosses at the top)."
    )
    return _figure(f"sensitivity_{_safe(key)}", f"Sensitivity to {_plain(key)}", alt, draw, (7.0, 3.4))


def _lower(plan: PlanRecord) -> bool:
    """Whether tuning took the smallest."""
    return plan.lower_is_better if plan.select_lower_is_better is None else plan.select_lower_is_better


def _number(value: Setting) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [place for place, _ in points], [value for _, value in points]


def _figure(name: str, title: str, alt: str, draw: Callable[["Axes"], None], size: tuple[float, float]) -> Picture:
    from matplotlib import rc_context

    settings: Any = {
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
    with rc_context(settings):
        figure = _empty(size)
        axes = figure.subplots()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2, color=_INK)
        return Picture(name, title, alt, _svg(figure), _png(figure))


def _empty(size: tuple[float, float]) -> "Figure":
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


def _png(figure: "Figure") -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120)
    return written.getvalue()


def _plain(text: str, limit: int = 32) -> str:
    """`text` without control characters, and not too long."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    shown = f" {shown}" if shown.startswith("_") else shown  # a legend leaves such labels out
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _safe(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower())[:32] or "parameter"
