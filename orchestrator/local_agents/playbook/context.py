"""What a goal says besides its factor, and what that makes of the study: model and data, optimizer, seeds, measure."""

import re
from dataclasses import replace

from orchestrator.local_agents.playbook.study import Arm, Harness, Study, UnknownGoal, optimizer_settings

_ON_TRANSFORMER = re.compile(
    r"\b(transformers?|language|attention|ll?ms?|nlp|text|characters?|decoders?|perplexity|tokens?)\b", re.IGNORECASE
)
_ON_CLASSIFIER = re.compile(
    r"\b(classif\w+|digits?|handwritten|perceptrons?|mlps?|feed[\s-]?forward|accuracy)\b", re.IGNORECASE
)
_TRANSFORMER_STEPS = 100  # of warm-up that fit into a training of the transformer under the default policy
_COUNTED = re.compile(
    r"\b(\d+|one|single|two|three)[\s-]+(?:(?:hidden|different|random|attention)[\s-]+)?"
    r"(layers?|blocks?|heads?|seeds?|runs?|repetitions?|replications?)\b",
    re.IGNORECASE,
)
_WORDS = {"one": 1, "single": 1, "two": 2, "three": 3}
_MAX_SEEDS = 16  # with more pairs than that, the test is no longer exact
_SLOWER = re.compile(
    r"\b(speeds?|speed[\s-]?ups?|slow\w*|overhead|(training|step|wall)[\s-]*(clock\s+)?time|time\s+per\s+step"
    r"|(computational|compute|time)\s+costs?)\b",
    re.IGNORECASE,
)
_FASTER = re.compile(r"\b(fast\w*|quick\w*)\b", re.IGNORECASE)
_OTHER_MEASURE = re.compile(
    r"\b(memory|ram|loss(es)?|converge\w*|learns?|stab\w+|generali[sz]\w*|diverge\w*)\b", re.IGNORECASE
)
_ON_TEXT = ("gradient checkpointing", "data parallel")
_TIMED = ("gradient checkpointing", "precision", "hidden dimension")
"""Factors that change what a step costs, at the same number of samples."""


def in_context(text: str, study: Study, optimizers: list[str], rates: dict[str, list[float]]) -> Study:
    """The study under what else the text says. Raises UnknownGoal where that cannot be done."""
    study = _on_model(text, study)
    study = _with_optimizer(study, optimizers, rates)
    study = _with_counts(text, study)
    return _measured(text, study)


def _on_model(text: str, study: Study) -> Study:
    transformer, classifier = _ON_TRANSFORMER.search(text), _ON_CLASSIFIER.search(text)
    if transformer and classifier:
        both = f"{transformer[0]!r} and {classifier[0]!r}"
        raise UnknownGoal(f"the goal names {both}; the playbook has a transformer on text and a perceptron on digits")
    if classifier and study.factor in _ON_TEXT:
        raise UnknownGoal(
            f"the playbook cannot do what {classifier[0]!r} asks for: {study.factor} is tried on a transformer"
        )
    longest = max(int(arm.settings.get("warmup") or 0) for arm in study.arms)
    if transformer and longest > _TRANSFORMER_STEPS:
        why = f"its training has no room for {longest} steps of warm-up"
        raise UnknownGoal(f"the playbook cannot do what {transformer[0]!r} asks for: {why}")
    harness: Harness = "transformer" if transformer else "classifier" if classifier else study.harness
    return replace(study, harness=harness)


def _with_optimizer(study: Study, optimizers: list[str], rates: dict[str, list[float]]) -> Study:
    """Trains every arm with the one optimizer that the goal names beside its factor."""
    if study.factor == "optimizer" or optimizers in ([], ["AdamW"]):
        return study
    if study.factor == "weight decay" or len(optimizers) > 1:
        names = " and ".join(optimizers)
        raise UnknownGoal(f"the playbook cannot do what {names!r} asks for: it tests {study.factor} with AdamW")
    (name,) = optimizers
    arms = tuple(Arm(arm.name, {**arm.settings, **optimizer_settings(name)}) for arm in study.arms)
    return replace(study, arms=arms, tune={"lr": rates[name]} if study.tune else {})


def _with_counts(text: str, study: Study) -> Study:
    has = {"layer": 4 if study.factor == "gradient checkpointing" else 2, "head": 4}
    has["block"] = has["layer"]
    for number, what in _COUNTED.findall(text):
        count, kind = _WORDS.get(number.lower()) or int(number[:9]), what.lower().removesuffix("s")
        if kind not in has:
            study = replace(study, seeds=_seeds(count, what))
        elif count != has[kind] or (kind == "head" and study.harness == "classifier"):
            why = (
                f"its model has {has[kind]} {kind}s"
                if study.harness == "transformer" or kind != "head"
                else "it has none"
            )
            raise UnknownGoal(f"the playbook cannot do what '{number} {what}' asks for: {why}")
    return study


def _seeds(count: int, what: str) -> int:
    if not 2 <= count <= _MAX_SEEDS:
        raise UnknownGoal(f"the playbook cannot do what '{count} {what}' asks for: it runs 2 to {_MAX_SEEDS} seeds")
    return count


def _measured(text: str, study: Study) -> Study:
    if study.factor == "data parallel":
        return study  # its reader has seen to it
    if re.search(r"\baccuracy\b", text, re.IGNORECASE) and not re.search(r"\bloss", text, re.IGNORECASE):
        return replace(study, primary="test_accuracy", lower_is_better=False, deterministic=False)
    slower = _SLOWER.search(text)
    timed = slower or (_FASTER.search(text) if study.factor in _TIMED else None)
    if timed is None or _OTHER_MEASURE.search(text):
        return study
    if study.factor not in _TIMED:
        raise UnknownGoal(f"the playbook cannot do what {timed[0]!r} asks for: it times {', '.join(_TIMED)} only")
    threat = "Time depends on what else the machine does, so all arms run under one seed before the next."
    return replace(study, primary="ms_per_step", tune={}, threat=threat, deterministic=False)
