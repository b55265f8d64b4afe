"""A goal that names what is to be tuned, as one training that reads it from `lab.params`."""

import re
from typing import Any

from orchestrator.local_agents.playbook.study import UnknownGoal
from orchestrator.local_agents.playbook.vocabulary import unknown_words

_RATES = {
    "AdamW": ("log", 3e-4, 0.3),
    "Adam": ("log", 3e-4, 0.3),
    "Lion": ("log", 1e-4, 0.1),
    "SGD": ("log", 1e-2, 3.0),
    "RMSprop": ("log", 1e-4, 0.1),
}
_PARAMETERS: dict[str, tuple[str, str]] = {
    r"\b(learning[\s-]*rates?|lrs?)\b": ("lr", ""),
    r"\b(weight[\s-]*decay|wd)\b": ("weight_decay", '("log", 0.0001, 1.0)'),
    r"\b(mini)?batch[\s_-]*sizes?\b": ("batch_size", '("logint", 4, 64)'),
    r"\bwarm(ing)?[\s-]*ups?\b": ("warmup", '("uniform", 0.0, 0.4)'),
    r"\b(hidden|width|dimension)\w*\b": ("hidden", "[64, 32, 128]"),
    r"\bclip\w*\b": ("clip", '("log", 0.1, 10.0)'),
}
_ALL = re.compile(r"\bhyper[\s-]*parameters?\b", re.IGNORECASE)
_STEPS = {"transformer": 150, "classifier": 400}


def tuning_of(goal: str) -> dict[str, Any]:
    """What the template needs. Raises UnknownGoal for a goal that names nothing that can be tuned here."""
    if strangers := unknown_words(goal):
        raise UnknownGoal(f"the playbook does not know what {strangers[0]!r} asks for")
    optimizers = [name for name in _RATES if re.search(rf"\b{name}\b", goal, re.IGNORECASE)]
    if len(optimizers) > 1:
        raise UnknownGoal(
            f"a sweep tunes one optimizer; {' and '.join(optimizers)} are named (labsandbox run compares them)"
        )
    optimizer = optimizers[0] if optimizers else "AdamW"
    space = {
        name: declared or repr(_RATES[optimizer])
        for pattern, (name, declared) in _PARAMETERS.items()
        if re.search(pattern, goal, re.IGNORECASE)
    }
    if not space and _ALL.search(goal):
        space = {name: declared or repr(_RATES[optimizer]) for name, declared in list(_PARAMETERS.values())[:4]}
    if not space:
        known = ", ".join(name for name, _ in _PARAMETERS.values())
        raise UnknownGoal(f"the playbook can tune {known}; the goal names none of them")
    classifier = re.search(r"\b(classif\w*|digits?|perceptrons?|mlps?)\b", goal, re.IGNORECASE)
    harness = "classifier" if classifier else "transformer"
    return {"space": space, "optimizers": [optimizer], "harness": harness, "steps": _STEPS[harness]}
