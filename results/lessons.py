"""What one sprint or sweep leaves for later ones: a finding with its effects, what tuning chose, and what went wrong.

Read from summaries of any age and shape. Only what came to its own end, and was judged under gates that held, may be gone
by: the rest is told as what it is, and no setting is taken from it.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from executor.experiment import Config
from results.findings import Analysis
from results.readable import line
from results.summary import (
    Summary,
    all_completed,
    ended_of,
    execution_of,
    final_implementation,
    object_of,
    outcome_of,
    part,
    verdict_of,
    word_of,
)

MAX_TEXT = 4000
_MAX_REPAIRS = 5
_SAME_SCALE = 2.0
"""How many times as long a training may be and still ask the same."""
_DATA = re.compile(r"\blab\.(text|digits)\(")
BEST, DEFAULTS = "best configuration", "defaults"
"""The two that a sweep's confirmation compares, whatever the best trial's number was."""


class Setting(BaseModel):
    """What tuning chose for an arm."""

    model_config = ConfigDict(frozen=True)

    arm: str
    config: Config


class Effect(BaseModel):
    """An arm against the baseline, as an analysis had it."""

    model_config = ConfigDict(frozen=True)

    arm: str
    baseline: str
    pairs: int
    mean: float
    low: float
    high: float


class Finding(BaseModel):
    """What one sprint or sweep left."""

    model_config = ConfigDict(frozen=True)

    sprint: str
    """Its id, or a sweep's."""
    goal: str
    when: str
    outcome: str
    word: str
    """The verdict's; empty where there was none."""
    verdict: str
    failure: str
    """Why it did not complete; empty where it did."""
    repairs: tuple[str, ...] = ()
    """What went wrong on the way, and what was decided."""
    factor: str = ""
    primary: str = ""
    settings: tuple[Setting, ...] = ()
    """Of the arms whose tuning did not end at an edge."""
    effects: tuple[Effect, ...] = ()
    sound: bool = False
    """Whether every gate held."""
    data: tuple[str, ...] = ()
    """Which of the lab's data sets the code used."""
    length: float | None = None
    """What a training of the baseline was given: its mean tokens, else samples, else steps."""
    superseded_by: str | None = None
    """The sprint or sweep that asked the same with more power."""

    @property
    def question(self) -> str:
        """Findings with the same factor, arms, metric and data may answer the same; empty where nothing was compared."""
        arms = sorted({name for effect in self.effects for name in (effect.arm, effect.baseline)})
        # "arm" is a factor that nobody named: only the goal tells what it was.
        factor = self.factor if self.factor != "arm" else f"arm: {self.goal.casefold()}"
        return json.dumps([factor, arms, self.primary, self.data]) if arms else ""

    def at_the_scale_of(self, other: "Finding") -> bool:
        """Whether trainings were about as long: who wins after 30 steps need not win after 3000."""
        if not self.length or not other.length:
            return self.length == other.length
        return 1 / _SAME_SCALE <= self.length / other.length <= _SAME_SCALE

    @property
    def power(self) -> tuple[bool, int, float]:
        """A finding that may be believed before one that may not, then more pairs, then narrower intervals."""
        if not self.effects:
            return self.sound, 0, 0.0
        return self.sound, min(one.pairs for one in self.effects), -max(one.high - one.low for one in self.effects)


def finding_of(sprint: str, summary: Summary) -> Finding:
    """What a sprint's summary says, whoever wrote it; bounded. Of one that had no plan and ran nothing, such as one whose
    goal the team could not read, only the goal: a refusal says what the team knows, and nothing of the goal."""
    if not _begun(summary):
        return Finding(
            sprint=sprint,
            goal=line(summary.get("goal"), 500),
            when=line(summary.get("start_time"), 40),
            outcome=line(outcome_of(summary), 40),
            word="",
            verdict="",
            failure="",
        )
    analysis, completed = _analysis(part(summary, "validation").get("numbers")), all_completed(summary)
    code = final_implementation(summary).get("code")
    return Finding(
        sprint=sprint,
        goal=line(summary.get("goal"), 500),
        when=line(summary.get("start_time"), 40),
        outcome=line(outcome_of(summary), 40),
        word=word_of(summary)[:60] if analysis else "",
        verdict=line(verdict_of(summary), 1000),
        failure="" if completed else _failure(summary),
        repairs=tuple(_repairs(summary)),
        factor=analysis.factor or "" if analysis else "",
        primary=analysis.primary or "" if analysis else "",
        settings=tuple(
            Setting(arm=arm.name, config=arm.config)
            for arm in (analysis.arms if analysis and completed else ())
            if arm.config and arm.ok and not arm.at_edge
        ),
        effects=_effects(analysis),
        sound=completed and _sound(analysis),
        data=_data(code),
        length=_length(analysis.arms[0].values) if analysis and analysis.arms else None,
    )


def finding_of_sweep(sweep: str, summary: Mapping[str, Any], spec: Mapping[str, Any], code: str) -> Finding:
    """What a sweep's summary says; what was searched for is in its `spec`. A best that fresh seeds did not confirm is told as
    that, and gives no setting. Raises pydantic.ValidationError where the record makes no sense."""
    confirmation, best = object_of(summary.get("confirmation")), object_of(summary.get("best"))
    analysis = _analysis(confirmation.get("numbers"))
    metric, params = line(summary.get("metric"), 128), object_of(best.get("params"))
    goal = line(spec.get("goal"), 500)
    # Who gave a file asked nothing in words: only the same file asks the same.
    asked = goal.casefold() or f"file {hashlib.sha256(code.encode(errors='replace')).hexdigest()[:16]}"
    sound = _sound(analysis)
    confirmed = analysis is not None and sound and analysis.verdict.word == "better" and not _is_defaults(analysis)
    said, which = line(summary.get("verdict"), 700), f"Trial {best.get('number')} ({_words(params)})"
    return Finding(
        sprint=sweep,
        goal=goal or line(f"Tune {', '.join(map(str, object_of(summary.get('space'))))} by {metric}", 500),
        when=_named_time(sweep),
        outcome="completed",
        word=analysis.verdict.word if analysis else "",
        verdict=line(f"{which}: {said}" if params else said, 1000),
        failure="" if best else said,
        factor=f"configuration of {asked}",
        primary=metric,
        settings=(Setting(arm=BEST, config=dict(params)),) if confirmed and not summary.get("at_edge") else (),
        effects=tuple(one.model_copy(update={"arm": BEST, "baseline": DEFAULTS}) for one in _effects(analysis)),
        sound=sound,
        data=_data(code),
    )


def _begun(summary: Summary) -> bool:
    plan = part(summary, "discussion").get("action_plan")
    code, tries = final_implementation(summary).get("code"), part(summary, "self_healing").get("attempts")
    return any(map(bool, (plan, code, execution_of(summary), tries)))


def _is_defaults(analysis: Analysis) -> bool:
    return bool(analysis.arms) and analysis.verdict.arm == analysis.arms[0].name


def _sound(analysis: Analysis | None) -> bool:
    return analysis is not None and all(gate.ok for gate in analysis.gates)


def _effects(analysis: Analysis | None) -> tuple[Effect, ...]:
    return tuple(
        Effect(arm=one.arm, baseline=one.baseline, pairs=one.pairs, mean=one.mean, low=one.low, high=one.high)
        for one in (analysis.contrasts if analysis else ())
    )


def _data(code: Any) -> tuple[str, ...]:
    return tuple(sorted(set(_DATA.findall(code)))) if isinstance(code, str) else ()


def _failure(summary: Summary) -> str:
    if outcome_of(summary) == "completed":
        return "a further container of the study did not complete"
    return line(ended_of(summary) or part(summary, "implementation").get("error"), 500)


def _repairs(summary: Summary) -> Iterator[str]:
    attempts = part(summary, "self_healing").get("attempts")
    for attempt in attempts[:_MAX_REPAIRS] if isinstance(attempts, list) else ():
        if isinstance(attempt, dict):
            yield f"{line(attempt.get('failure'), 300)} ({line(attempt.get('decision'), 100)})"


def _length(values: dict[str, float]) -> float | None:
    return next((values[name] for name in ("tokens", "samples", "steps") if name in values), None)


def _analysis(numbers: Any) -> Analysis | None:
    try:
        return Analysis.model_validate(numbers)
    except ValidationError:
        return None


def _words(params: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items()
    )[:300]


def _named_time(run: str) -> str:
    """The time in a folder's name, as far as it has one."""
    found = re.search(r"_(\d{4})(\d\d)(\d\d)_(\d\d)(\d\d)(\d\d)", run)
    return "{}-{}-{}T{}:{}:{}".format(*found.groups()) if found else ""
