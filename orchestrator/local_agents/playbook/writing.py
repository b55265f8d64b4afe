"""Writes a study as one readable experiment.py: templates for data, model, optimizer and training, put together."""

import json
import pprint
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.local_agents.playbook.study import Setting, Study
from orchestrator.local_agents.playbook.tuning import tuning_of

_BASES: dict[str, dict[str, Setting]] = {
    "transformer": {"hidden": 64, "layers": 2, "batch_size": 16, "warmup": 0.1, "clip": 1.0, "weight_decay": 0.01},
    "classifier": {"hidden": 64, "batch_size": 32, "warmup": 0.1, "clip": 1.0, "weight_decay": 0.01},
}
_GPU_SIZES = {"hidden": 512, "batch_size": 64}
"""Of the transformer; the classifier's data are too few for more."""
_MAX_STEPS = {"transformer": 600, "classifier": 1500}


def write_experiment(study: Study) -> str:
    """The study's source: self-contained but for torch and `lab`."""
    return _environment().get_template("experiment.py.j2").render(_values(study))


def write_tuning(goal: str) -> str:
    """One training that reads what the goal names from `lab.params`. Raises UnknownGoal."""
    values = tuning_of(goal)
    base = {"lr": 0.003, "optimizer": values["optimizers"][0], **_BASES[values["harness"]]}
    shared = {
        "base": repr(base),
        "names": ", ".join(values["space"]),
        "checkpoint": False,
        "context": 64,
        "gpu_context": 256,
    }
    return _environment().get_template("sweep.py.j2").render(values | shared)


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("orchestrator.local_agents.playbook"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Python, not HTML; what comes from the goal goes in as a literal
    )


def _values(study: Study) -> dict[str, Any]:
    base = dict(_BASES[study.harness])
    checkpointing, parallel = study.factor == "gradient checkpointing", study.factor == "data parallel"
    if checkpointing:
        base |= {"layers": 4, "batch_size": 8}  # deep enough for checkpoints to matter
    optimizers = [str(arm.settings["optimizer"]) for arm in study.arms if "optimizer" in arm.settings]
    longest = max((int(arm.settings.get("warmup") or 0) for arm in study.arms), default=0)
    sizes = [len(_first(values)) for values in study.tune.values()]
    trials = 1 + sum(size - 1 for size in sizes) if sizes else 0  # one parameter after the other
    return {
        "title": study.factor.capitalize(),
        "arm_names": study.arm_names,
        "goal": json.dumps(study.goal),
        "arms": [(json.dumps(arm.name), repr(arm.settings)) for arm in study.arms],
        "base": repr(base),
        "gpu_base": repr(_GPU_SIZES) if study.harness == "transformer" else "",
        "tuned": _in_words([_PARAMETERS[name] for name in study.tune]),
        "more_tuned": [name for name in study.tune if name != "lr"],
        "earlier": _in_docstring(study.earlier),
        "tune_code": pprint.pformat(study.tune, sort_dicts=False, width=110),
        "seeds": study.seeds,
        "harness": study.harness,
        "unit_of_data": "tokens" if study.harness == "transformer" else "samples",
        "optimizers": list(dict.fromkeys(optimizers)) or ["AdamW"],
        "checkpoint": checkpointing,
        "precision": study.factor == "precision",
        "batch_size": study.factor == "batch size",
        "parallel": parallel,
        "context": 128 if checkpointing else 64,
        "gpu_context": 512 if checkpointing else 256,
        "default_lr": 0.003,
        "trials": trials,
        # A warm-up that is given in steps must end within the training, with something after it.
        "at_least": max(30, round(1.3 * longest)),
        "at_most": max(40 if checkpointing else _MAX_STEPS[study.harness], round(1.3 * longest)),
        "primary": study.primary,
        "select": study.primary.replace("test_", "val_", 1),
        # Per token: of nothing else is a ratio of perplexities a thing to say.
        "unit": '"nats"' if study.primary.endswith("_loss") and study.harness == "transformer" else "None",
        "lower_is_better": study.lower_is_better,
        "deterministic": study.deterministic,
        "factor": study.factor,
    }


_PARAMETERS = {"lr": "the learning rate", "weight_decay": "the weight decay"}


def _in_words(names: list[str]) -> str:
    """The names as the subject of a sentence with what follows; empty where there are none."""
    if not names:
        return ""
    text = " and then ".join(names)
    return f"{text[0].upper()}{text[1:]} {'is' if len(names) == 1 else 'are'}"


def _first(values: dict[str, list[float]] | list[float]) -> list[float]:
    return next(iter(values.values())) if isinstance(values, dict) else values


def _in_docstring(text: str) -> str:
    """What a docstring can hold: earlier sprints' names and numbers, and nothing that would end it."""
    return "".join(c for c in text if c.isalnum() or c in " .,;:()-_+")
