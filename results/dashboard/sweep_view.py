"""One sweep for its page: trials, the best, and what confirmed it. Of any shape; nothing here can fail on data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from results.dashboard.places import Place, parts, read_json, read_text
from results.dashboard.study_record import Recorded, recorded
from results.dashboard.view import Table, arms_of, contrasts_of
from results.host import host_told
from results.readable import digits, line, number
from results.store import EXECUTION, SWEEP, SWEPT
from results.summary import object_of

_MOST_TRIALS, _MOST_SHOWN = 1000, 200
_MOST_PARAMS = 40
_OUTCOME = re.compile(r'"outcome": "([a-z_]{1,20})"')
_FACTS = {"trials": "trials asked for", "parallel": "at once", "sampler": "sampler", "prune": "pruned",
          "confirm": "seeds to confirm on", "seed": "seed"}  # fmt: skip


@dataclass(frozen=True)
class TrialRow:
    """One trial."""

    name: str
    address: str
    """Of its page; "" where there is no folder."""
    state: str
    value: str
    params: str
    best: bool


@dataclass(frozen=True)
class ConfirmRow:
    """One run of the confirmation."""

    name: str
    address: str
    state: str


@dataclass(frozen=True)
class SweepView:
    """What a sweep's page shows."""

    goal: str
    finished: bool
    metric: str
    best: str
    verdict: str
    word: str
    note: str
    trials: tuple[TrialRow, ...]
    confirmations: tuple[ConfirmRow, ...]
    arms: Table
    contrasts: Table
    importances: Table
    facts: tuple[tuple[str, str], ...]


def sweep_view(place: Place, running: bool = False) -> SweepView:
    """The view of a sweep's folder, finished or not. running: a process is at it."""
    spec, summary = read_json(place.path, SWEEP), read_json(place.path, SWEPT)
    so_far = Recorded() if summary else recorded(place.path)
    numbers = object_of(object_of(summary.get("confirmation")).get("numbers"))
    verdict, best = object_of(numbers.get("verdict")), object_of(summary.get("best"))
    folders = {one.part.rpartition("/")[2]: one for one in parts(place, "trials")}
    metric = line(summary.get("metric") or so_far.metric or spec.get("metric"), 128)
    return SweepView(
        goal=goal_of(spec, summary),
        finished=bool(summary),
        metric=metric,
        best=f"trial {line(best.get('number'), 12)}: {metric} {digits(best.get('value'))} with {_params(best)}" if best else "",
        verdict=line(verdict.get("text"), 2000),
        word=line(verdict.get("word"), 60),
        note=line(summary.get("note"), 600),
        trials=tuple(
            _recorded(summary, folders, best)
            if summary
            else _so_far(folders, so_far, spec.get("maximize") is True, "running" if running else "cut off")
        ),
        confirmations=tuple(_confirming(one) for one in parts(place, "confirm")),
        arms=arms_of(numbers),
        contrasts=contrasts_of(numbers),
        importances=Table(
            ("parameter", "importance"),
            tuple((line(k, 60), digits(v)) for k, v in list(object_of(summary.get("importances")).items())[:_MOST_PARAMS]),
        ),
        facts=tuple(_facts(spec, summary)),
    )  # fmt: skip


def goal_of(spec: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """What was searched for."""
    metric = line(summary.get("metric") or spec.get("metric"), 60)
    return line(spec.get("goal") or summary.get("goal"), 2000) or f"Search{f' by {metric}' if metric else ''}"


def _recorded(summary: Mapping[str, Any], folders: Mapping[str, Place], best: Mapping[str, Any]) -> list[TrialRow]:
    rows = []
    found = summary.get("trials")
    for one in map(object_of, found[:_MOST_TRIALS] if isinstance(found, list) else []):
        name = line(one.get("number"), 12)
        address = folders[name].id if name in folders else ""
        is_best = bool(best) and one.get("number") == best.get("number")
        rows.append(
            TrialRow(name, address, line(one.get("state"), 20), digits(one.get("value")), _params(one), is_best)
        )
    return rows  # fmt: skip


def _so_far(folders: Mapping[str, Place], known: Recorded, maximize: bool, unended: str) -> list[TrialRow]:
    """Of a sweep that has no summary yet: the last of its trials. What became of them is Optuna's to say; of a first trial,
    and where nothing is on record, their own folders say it. unended: what is said of those that have no end."""
    best = (max if maximize else min)(known.values, key=lambda name: known.values[name], default="")
    rows = []
    for name, one in list(folders.items())[-_MOST_SHOWN:]:
        state, params = known.states.get(name) or _outcome(one), {"params": read_json(one.path, "params.json")}
        state = unended if state in ("running", "not finished") else state
        rows.append(
            TrialRow(
                line(name, 12), one.id, state, digits(number(known.values.get(name))), _params(params), name == best
            )
        )
    return rows


def _confirming(one: Place) -> ConfirmRow:
    return ConfirmRow(one.part.rpartition("/")[2].replace("-", ", seed "), one.id, _outcome(one))


def _outcome(trial: Place) -> str:
    """From the beginning of its record, where labsandbox writes it: all of its output may come after that."""
    found = _OUTCOME.search(read_text(trial.path, EXECUTION, 1000))
    return found[1] if found else "not finished"


def _params(found: Mapping[str, Any]) -> str:
    params = list(object_of(found.get("params")).items())[:_MOST_PARAMS]
    return (
        ", ".join(f"{line(k, 40)} = {digits(v) if isinstance(v, float) else line(v, 40)}" for k, v in params)
        or "its defaults"
    )


def _facts(spec: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    words = {True: "yes", False: "no"}
    found = [
        (_FACTS[name], words[spec[name]] if isinstance(spec[name], bool) else line(spec[name], 40))
        for name in _FACTS
        if spec.get(name) is not None
    ]
    found.append(("better is", "more" if spec.get("maximize") else "less"))
    for name, one in list(object_of(summary.get("space")).items())[:_MOST_PARAMS]:
        said = ", ".join(f"{line(k, 20)} {line(v, 80)}" for k, v in object_of(one).items() if v not in ([], None))
        found.append((f"space of {line(name, 40)}", said))
    if summary:
        found.append(("host", line(host_told(summary.get("host")), 400)))
    return found
