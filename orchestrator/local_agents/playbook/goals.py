"""Reading a goal: which factor is meant, and which arms. What cannot be read is refused, never guessed."""

import re
from collections.abc import Callable

from orchestrator.local_agents.playbook.context import in_context
from orchestrator.local_agents.playbook.refusals import refuse_unmet
from orchestrator.local_agents.playbook.study import HOW_TO_CONNECT, Arm, Study, UnknownGoal, optimizer_settings
from orchestrator.local_agents.playbook.vocabulary import unknown_words

KNOWN = (
    "it knows optimizers, warm-up, gradient clipping, batch size, weight decay, hidden dimension, gradient checkpointing, "
    "precision, data parallelism"
)

MAX_ARMS = 6
_LEARNING_RATES = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
# Lion wants rates 3 to 10 times lower than AdamW (Chen et al. 2023); SGD with momentum far higher ones.
_RATES_OF = {
    "AdamW": _LEARNING_RATES,
    "Adam": _LEARNING_RATES,
    "Lion": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "SGD": [3e-2, 1e-1, 3e-1, 1.0, 3.0],
    "RMSprop": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
}
_BETAS_OF = {"AdamW": "0.9/0.999", "Adam": "0.9/0.999", "Lion": "0.9/0.99"}
# Decoupled decay acts as rate times decay, so Lion's is 5 times AdamW's. Zero is no edge: there is nothing below it.
_DECAYS_OF = {"AdamW": [0.0, 0.1, 1.0], "Lion": [0.0, 0.5, 5.0]}
_OPTIMIZERS = {name.lower(): name for name in _RATES_OF}
_OTHER_OPTIMIZERS = re.compile(
    r"\b(sophia|shampoo|muon|lamb|lars|adagrad|adadelta|adafactor|nadam|radam|adabelief|adamax|soap|l-?bfgs|prodigy"
    r"|novograd|adan|rprop|signsgd)\b",
    re.IGNORECASE,
)
_ADAM_W = re.compile(r"\badam[\s-]w\b", re.IGNORECASE)
_NO_NAMES = {
    "optimizer",
    "optimiser",
    "other",
    "others",
    "the",
    "its",
    "baseline",
    "plain",
    "better",
    "worse",
    "momentum",
}
_VERSUS = re.compile(r"(?<![\w.-])([^\W\d][\w-]*)\s+(?:vs\.?|versus|against|or|than)\s+([^\W\d][\w-]*)", re.IGNORECASE)

_FACTORS: dict[str, re.Pattern[str]] = {
    "data parallel": re.compile(
        r"\bdata[\s-]*paralleli?[sz]?\w*|\bddp\b|\bdistributed\s+(data\b|training\b)|\bmulti(ple)?[\s-]*(gpus?|devices?)\b"
        r"|\b(\d+|one|two|four|eight)\s+(gpus|devices)\b",
        re.IGNORECASE,
    ),
    "gradient checkpointing": re.compile(r"\b(gradient|activation)[\s-]*checkpoint", re.IGNORECASE),
    "precision": re.compile(
        r"\b(mixed|half|full|numeric(al)?|reduced)[\s-]*precision|\b(fp|float|bf|bfloat)[\s-]?(16|32)\b|\bautocast\b",
        re.IGNORECASE,
    ),
    "warm-up": re.compile(r"\bwarm[\s-]?up", re.IGNORECASE),
    "gradient clipping": re.compile(
        r"\bgrad(ient)?s?[\s-]*(norm[\s-]*)?clip|\bclip(ping)?\b.*\bgradients?\b|\bclipping\s+(threshold|norm|value)",
        re.IGNORECASE,
    ),
    "weight decay": re.compile(r"\bweight[\s_-]*decay|\bwd\b|\bl2[\s-]*(regulari[sz]ation|penalty)", re.IGNORECASE),
    "batch size": re.compile(
        r"\b(mini[\s-]?)?batch[\s_-]*sizes?\b|\b(small|large)r?[\s-]+(mini[\s-]?)?batch(es)?\b", re.IGNORECASE
    ),
    "hidden dimension": re.compile(
        r"\bhidden[\s_-]*(dim(ension)?s?|size|width|units?|layer\s+size)|\b(model|network|layer)[\s-]*(width|dim(ension)?)\b"
        r"|\bd_model\b|\bembedding[\s-]*(dim(ension)?|size)",
        re.IGNORECASE,
    ),
}  # fmt: skip


def read_goal(goal: str, gpus: int = 0) -> Study:
    """The study that `goal` asks for. Raises UnknownGoal, with one line that says what is known.

    gpus: how many the experiment is given; a goal that names more, or any where none is given, cannot be met.
    """
    text = _ADAM_W.sub("AdamW", " ".join(goal.split()))
    study = _study(text)
    # A word that is not known may be the point of the goal (a data set, a model, cookies): never a canned run.
    if strange := unknown_words(text):
        words = ", ".join(repr(word[:20]) for word in strange[:2])
        more = " and others" if len(strange) > 2 else ""
        raise UnknownGoal(f"the playbook does not know what {words}{more} means here: {HOW_TO_CONNECT}; {KNOWN}")
    refuse_unmet(text, study.factor)
    _refuse_without_gpus(text, study, gpus)
    return in_context(text, study, _named_optimizers(text), _RATES_OF)


def _refuse_without_gpus(text: str, study: Study, gpus: int) -> None:
    wanted = max((int(arm.settings.get("devices") or 1) for arm in study.arms), default=1)
    named = re.search(r"\b(gpus?|cuda)\b", text, re.IGNORECASE)
    if (named and gpus < wanted) or (gpus and wanted > gpus):
        given = f"{gpus} GPU(s) are given" if gpus else "no GPU is given"
        raise UnknownGoal(f"the goal needs {wanted} GPU(s), and {given} (--policy gpu --gpus {wanted})")


def _study(text: str) -> Study:
    named = [factor for factor, pattern in _FACTORS.items() if pattern.search(text)]
    optimizers = _named_optimizers(text)
    others = _OTHER_OPTIMIZERS.search(text) is not None
    if len(optimizers) + others >= 2 or (not named and (optimizers or others) and _says_optimizer(text)):
        if [factor for factor in named if not _as_in_base(factor, optimizers)]:
            raise UnknownGoal(_several(["optimizer", *named]))
        return _optimizer_study(text, optimizers)
    if not named and _says_optimizer(text):
        return _optimizer_study(text, [])
    if len(named) > 1:
        raise UnknownGoal(_several(named))
    if not named:
        if len(optimizers) == 1 and not unknown_words(text):
            other = "Lion" if optimizers[0] == "AdamW" else "AdamW"
            example = f"{optimizers[0]} vs. {other}"
            raise UnknownGoal(f"a second arm to compare {optimizers[0]} with is missing: name it, as in {example!r}")
        raise UnknownGoal(f"the playbook cannot read this goal: {HOW_TO_CONNECT}; {KNOWN}")
    return _READERS[named[0]](text)


def _as_in_base(factor: str, optimizers: list[str]) -> bool:
    """Whether every comparison of these optimizers has it anyway, at its usual value."""
    decays = factor == "weight decay" and set(optimizers) <= {"AdamW", "Lion"}
    return decays or factor in {"warm-up", "gradient clipping"}


def _several(factors: list[str]) -> str:
    return f"the goal names several factors ({', '.join(factors)}); name the one to vary, or {HOW_TO_CONNECT}"


def _named_optimizers(text: str) -> list[str]:
    words = re.findall(r"[A-Za-z]+", text)
    found = (_OPTIMIZERS[word.lower()] for word in words if word.lower() in _OPTIMIZERS)
    return list(dict.fromkeys(found))


def _says_optimizer(text: str) -> bool:
    return re.search(r"\boptimi[sz](er|ers|ation algorithms?)\b", text, re.IGNORECASE) is not None


def _optimizer_study(text: str, names: list[str]) -> Study:
    if other := _OTHER_OPTIMIZERS.search(text):
        raise UnknownGoal(f"the playbook does not know the optimizer {other[0]}; it knows {', '.join(_RATES_OF)}")
    for left, right in _VERSUS.findall(text):
        pair = [word for word in (left, right) if word.lower() not in _OPTIMIZERS]
        if len(pair) == 1 and pair[0].lower() not in _NO_NAMES:
            raise UnknownGoal(f"the playbook does not know the optimizer {pair[0]!r}; it knows {', '.join(_RATES_OF)}")
    if len(names) == 1:
        names = ["AdamW" if names[0] != "AdamW" else "Lion", *names]
        names.sort(key=lambda name: name != "AdamW")
    names = names or ["AdamW", "Lion", "SGD"]
    tune: dict[str, dict[str, list[float]] | list[float]] = {"lr": {name: _RATES_OF[name] for name in names}}
    decaying = all(name in _DECAYS_OF for name in names)  # the others have none, and would have trials for nothing
    if decaying:
        tune["weight_decay"] = {name: _DECAYS_OF[name] for name in names}
    return Study(
        goal=text,
        factor="optimizer",
        arms=tuple(Arm(name, {"optimizer": name} if decaying else optimizer_settings(name)) for name in names),
        harness="transformer",
        tune=tune,
        expectation="Adaptive methods usually lead plain SGD on transformers; Lion needs a lower learning rate than "
        "AdamW, and published comparisons of the two depend on how well each was tuned.",
        threat="An optimizer at the other's learning rate looks worse than it is, so each has its own grid, with "
        "equally many trials. " + _betas_of(names),
    )


def _betas_of(names: list[str]) -> str:
    """A sentence about what is not tuned; empty where that is nothing."""
    told = [f"{name} {_BETAS_OF[name]}" for name in names if name in _BETAS_OF]
    return f"Betas are the customary ones ({', '.join(told)})." if told else ""


# ---- numbers ----

_NUMBER = re.compile(r"(?<![\w.])((?:(?<![^\s(])-)?\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w.]*\w)(\s*%)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"\b([1-9]),000\b")
# Numbers that belong to something else than the factor.
_ELSEWHERE = re.compile(
    r"\b\d+(\.\d+)?[\s-]*(epochs?|layers?|seeds?|heads?|runs?|trials?|minutes?|hours?|seconds?|gpus?|samples?|classes"
    r"|times|x)\b|\b(seed|layers?|epochs?|gpt|resnet|section|figure|table)[\s-]*\d+",
    re.IGNORECASE,
)


def _numbers(text: str, percent: bool = False) -> list[float]:
    cleaned = _ELSEWHERE.sub(" ", _THOUSANDS.sub(r"\g<1>000", text))
    return [float(number) for number, mark in _NUMBER.findall(cleaned) if bool(mark) == percent]


def _check(factor: str, values: list[float], low: float, high: float) -> None:
    if len(set(values)) < len(values):
        raise UnknownGoal(f"the goal names the same {factor} twice")
    for value in values:
        if not low <= value <= high:
            raise UnknownGoal(f"a {factor} of {value:g} is outside what the playbook can test ({low:g} to {high:g})")
    if len(values) > MAX_ARMS:
        raise UnknownGoal(f"the goal names {len(values)} values of {factor}; the playbook tests at most {MAX_ARMS}")


def _no_percent(factor: str, text: str) -> None:
    if _numbers(text, percent=True):
        raise UnknownGoal(f"a {factor} in percent has no meaning to the playbook; name its values")


_RATIOS = {"doubl": 2.0, "twice": 2.0, "halv": 0.5, "half": 0.5, "tripl": 3.0, "quadrupl": 4.0}
_RATIO = re.compile(rf"\b(?:({'|'.join(_RATIOS)})|(\d+(?:\.\d+)?)\s*(?:x|times)\b)", re.IGNORECASE)


def _ratios(factor: str, text: str) -> list[float]:
    """By what the goal multiplies the factor's usual value, where it says so."""
    found = [_RATIOS[word.lower()] if word else float(number) for word, number in _RATIO.findall(text)]
    if any(ratio == 1 for ratio in found) or (_shrinks(text) and min(found, default=0.0) > 1):
        raise UnknownGoal(f"the goal does not say clearly by how much the {factor} is to change; name its values")
    return list(dict.fromkeys(found))


_GROWS = re.compile(r"\b(increas|grow|enlarg|larger|bigger|wider|rais|expand|doubl|tripl|quadrupl)", re.IGNORECASE)
_SHRINKS = re.compile(r"\b(reduc|decreas|shrink|shrunk|halv|smaller|narrow|lower|cut|drop|less|shorter)", re.IGNORECASE)
_OUTCOME = r"(loss(es)?|perplexity|accuracy|errors?|time|costs?|speed|memory|overfitting|noise|stability|performance)"
# "Does it reduce the loss?" says nothing of the factor's own direction.
_OF_OUTCOME = re.compile(
    rf"\b\w+\s+((the|its|final|training|train|validation|val|test)\s+)*{_OUTCOME}\b"
    rf"|\b{_OUTCOME}\s+((is|be|gets?|becomes?|much)\s+)*\w+(er|ed|es|s)\b|\b(lower|higher|smaller|larger)\s+{_OUTCOME}",
    re.IGNORECASE,
)


def _grows(text: str) -> bool:
    return _GROWS.search(_OF_OUTCOME.sub(" ", text)) is not None


def _shrinks(text: str) -> bool:
    return _SHRINKS.search(_OF_OUTCOME.sub(" ", text)) is not None


def _without(text: str, what: str) -> bool:
    return re.search(rf"\b(no|without|disabled?|off)\b(?=.*{what})|{what}\w*\s+(off|disabled)", text, re.I) is not None


# ---- one reader a factor ----

_DEVICE_COUNTS = (1, 2, 4, 8)  # of which every batch has a multiple of samples
_COUNT_WORDS = {"one": 1, "single": 1, "two": 2, "four": 4, "eight": 8}


def _data_parallel(text: str) -> Study:
    words = re.findall(
        rf"(?<![\w.])(\d+|{'|'.join(_COUNT_WORDS)})(?![\w.]*\d)(?!\s*(?:seed|layer|head|run|rep))", text.lower()
    )
    counts = list(dict.fromkeys(_COUNT_WORDS.get(word) or int(word[:9]) for word in words)) or [1, 2]
    if len(counts) == 1:
        counts = [1, counts[0]] if counts[0] != 1 else [1, 2]
    if odd := [count for count in counts if count not in _DEVICE_COUNTS]:
        raise UnknownGoal(f"the playbook splits a batch over 1, 2, 4 or 8 devices, not {odd[0]}")
    by_loss = re.search(r"\b(loss(es)?|converge\w*|learns?)\b", text, re.IGNORECASE) is not None
    return Study(
        goal=text,
        factor="data parallel",
        arms=tuple(Arm(f"{count} device{'s' if count > 1 else ''}", {"devices": count}) for count in counts),
        harness="transformer",
        primary="test_loss" if by_loss else "samples_per_s",
        lower_is_better=by_loss,
        seeds=6,
        expectation="Every device computes its part of the batch and the gradients are averaged: the same training, faster by "
        "less than the number of devices, because the averaging takes time.",
        threat="All arms see the same batches, split over their devices, so that the losses must agree; starting the "
        "processes is not counted as training.",
    )


def _checkpointing(text: str) -> Study:
    return Study(
        goal=text,
        factor="gradient checkpointing",
        arms=(Arm("off", {"checkpoint": False}), Arm("on", {"checkpoint": True})),
        harness="transformer",
        primary="activation_mib",
        deterministic=True,
        expectation="Checkpointing keeps only each block's input and computes the rest again in the backward pass: less "
        "memory for about one more forward pass of time, and the same gradients.",
        threat="Process memory hides behind the allocator, so the bytes saved for backward are counted themselves; the "
        "losses of both arms must agree.",
    )


def _precision(text: str) -> Study:
    names = ["fp32"]
    for name, pattern in (
        ("bf16", r"\bbf(loat)?[\s-]?16\b"),
        ("fp16", r"\b(fp|float)[\s-]?16\b|\bhalf[\s-]*precision"),
    ):
        if re.search(pattern, text, re.IGNORECASE):
            names.append(name)
    if len(names) == 1:
        names.append("bf16")
    return Study(
        goal=text,
        factor="precision",
        arms=tuple(Arm(name, {"precision": name}) for name in names),
        harness="transformer",
        tune={"lr": [3e-3, 1e-2, 3e-2, 1e-1]},
        expectation="bf16 has the range of fp32 and 8 bits of precision; fp16 has more precision and a small range, so "
        "its loss is scaled to keep gradients from vanishing.",
        threat="Evaluation is in fp32 for every arm, so that only training differs; steps whose loss is not finite are "
        "counted, not hidden.",
    )


def _warmup(text: str) -> Study:
    shares = _numbers(text, percent=True)
    steps = _numbers(text)
    if shares and steps:
        raise UnknownGoal("the goal gives the warm-up in percent and in steps; name one")
    _check("warm-up (in percent)", shares, 0, 100)
    _check("warm-up (in steps)", steps, 0, 1500)
    arms = [Arm(f"{value:g} steps", {"warmup": int(value)}) for value in steps]
    arms += [Arm(f"{value:g} %", {"warmup": value / 100}) for value in shares]
    if not arms:
        arms = [Arm("none", {"warmup": 0}), Arm("10 %", {"warmup": 0.1}), Arm("30 %", {"warmup": 0.3})]
    elif len(arms) == 1 or (_without(text, "warm") and not any(arm.settings["warmup"] == 0 for arm in arms)):
        arms = [Arm("none", {"warmup": 0}), *(arm for arm in arms if arm.settings["warmup"] != 0)]
    return _quick_study(
        text,
        "warm-up",
        arms,
        "Warm-up mostly allows higher peak learning rates; at a well-tuned rate a small model may not need it.",
        "The best learning rate depends on the warm-up, so it is tuned for each arm.",
    )


def _clipping(text: str) -> Study:
    _no_percent("clipping threshold", text)
    values = _numbers(text) or ([1.0] if _without(text, "clip") else [])
    _check("clipping threshold", values, 1e-3, 1e3)
    arms = [Arm(f"{value:g}", {"clip": value}) for value in values]
    if not arms:
        arms = [Arm(f"{value:g}", {"clip": value}) for value in (0.1, 1.0, 5.0)]
        arms.insert(0, Arm("none", {"clip": None}))
    elif len(arms) == 1 or _without(text, "clip"):
        arms.insert(0, Arm("none", {"clip": None}))
    return Study(
        goal=text,
        factor="gradient clipping",
        arms=tuple(arms),
        harness="transformer",
        tune={"lr": [3e-3, 1e-2, 3e-2, 1e-1]},
        expectation="Clipping bounds the rare large step; a threshold far below the usual gradient norm turns the method "
        "into one with normalised steps.",
        threat="A low threshold acts like a lower learning rate under SGD, so the rate is tuned for each arm.",
    )


def _batch_size(text: str) -> Study:
    _no_percent("batch size", text)
    values = _numbers(text)
    _check("batch size", values, 1, 512)
    if any(value != int(value) for value in values):
        raise UnknownGoal("a batch size is a whole number")
    chosen = [int(value) for value in values] or [16, 64, 256]
    if len(values) < 2 and (ratios := _ratios("batch size", text)):
        base = int(values[0]) if values else 32
        chosen = [base, *(int(base * ratio) for ratio in ratios)]
        _check("batch size", [float(value) for value in chosen], 1, 512)
    if len(chosen) == 1:
        chosen = [32 if chosen[0] != 32 else 128, *chosen]
    return _quick_study(
        text,
        "batch size",
        [Arm(f"{value}", {"batch_size": value}) for value in chosen],
        "At equal numbers of samples small batches take more and noisier steps; large ones want higher rates.",
        "Every arm sees the same number of samples, and the learning rate is tuned for each.",
    )


def _weight_decay(text: str) -> Study:
    _no_percent("weight decay", text)
    values = _numbers(text)
    _check("weight decay", values, 0, 10)
    chosen = values or [0.0, 0.01, 0.1, 1.0]
    if len(chosen) == 1:
        chosen = [0.0, *chosen] if chosen[0] else [0.0, 0.1]
    elif _without(text, "weight") and 0.0 not in chosen:
        chosen = [0.0, *chosen]
    return _quick_study(
        text,
        "weight decay",
        [Arm(f"{value:g}", {"weight_decay": value}) for value in chosen],
        "Decoupled decay shrinks weights at a rate of learning rate times decay; it helps where a model would overfit.",
        "Decay acts through the learning rate, so that is tuned for each arm; the gap between training and validation "
        "loss is reported beside the primary metric.",
    )


_BASE_HIDDEN = 64
_TO_SHARE = re.compile(r"\b(?:to|at|of|is)\s+(?:about\s+|only\s+)?\d+(?:\.\d+)?\s*%|%\s+of\b|%\s+as\b", re.IGNORECASE)


def _changed_by(shares: list[float], text: str) -> list[float]:
    """The hidden dimension after a change by those percents, as shares of what it was."""
    if to := _TO_SHARE.search(text):
        raise UnknownGoal(f"the playbook reads percent as a change by so much, not as {to[0]!r}; name the values")
    grows, shrinks = _grows(text), _shrinks(text)
    if not grows and not shrinks:
        named = " and ".join(f"{share:g}%" for share in shares)
        raise UnknownGoal(f"the goal does not say whether the hidden dimension is to grow or to shrink by {named}")
    _check("change of the hidden dimension (in percent)", shares, 1, 95 if shrinks else 400)
    signs = [sign for sign, said in ((-1, shrinks), (1, grows)) if said]
    return [1 + sign * share / 100 for sign in signs for share in shares]


def _hidden(text: str) -> Study:
    shares, sizes = _numbers(text, percent=True), _numbers(text)
    base = sizes[0] if len(sizes) == 1 else _BASE_HIDDEN
    ratios = _ratios("hidden dimension", text) if len(sizes) < 2 else []
    if shares:
        if len(sizes) > 1:
            raise UnknownGoal("the goal gives the hidden dimension in percent and as numbers; name one")
        sizes = [base, *(max(4, 4 * round(base * ratio / 4)) for ratio in _changed_by(shares, text))]
    elif ratios:
        sizes = [base, *(base * ratio for ratio in ratios)]
    elif not sizes:
        changes = [ratio for ratio, said in ((0.5, _shrinks(text)), (2.0, _grows(text))) if said] or [0.5]
        sizes = [base, *(base * ratio for ratio in changes)]
    elif len(sizes) == 1:
        sizes = [_BASE_HIDDEN if base != _BASE_HIDDEN else 32, base]
    _check("hidden dimension", sizes, 4, 512)
    if any(size % 4 for size in sizes):
        raise UnknownGoal("a hidden dimension must be a multiple of 4, the number of attention heads")
    return Study(
        goal=text,
        factor="hidden dimension",
        arms=tuple(Arm(f"{int(size)}", {"hidden": int(size)}) for size in dict.fromkeys(sizes)),
        harness="transformer",
        tune={"lr": _LEARNING_RATES},
        expectation="A narrower model usually ends at a higher loss after equally many steps, and is faster; by how much "
        "depends on how long both are trained.",
        threat="Narrow models want higher learning rates, so the rate is tuned for each arm; time per step is reported.",
    )


def _quick_study(text: str, factor: str, arms: list[Arm], expectation: str, threat: str) -> Study:
    distinct = list({arm.name: arm for arm in arms}.values())
    if len(distinct) < 2:
        raise UnknownGoal(f"the goal names one level of {factor} only; name two or more")
    return Study(
        goal=text,
        factor=factor,
        arms=tuple(distinct),
        harness="classifier",  # quick, and can overfit
        tune={"lr": _LEARNING_RATES},
        expectation=expectation,
        threat=threat,
    )


_READERS: dict[str, Callable[[str], Study]] = {
    "data parallel": _data_parallel,
    "gradient checkpointing": _checkpointing,
    "precision": _precision,
    "warm-up": _warmup,
    "gradient clipping": _clipping,
    "weight decay": _weight_decay,
    "batch size": _batch_size,
    "hidden dimension": _hidden,
}
