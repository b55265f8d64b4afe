"""The command line that repeats a sprint."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from orchestrator.agents.choice import AgentsChoice
from orchestrator.lab_setup import LabOptions
from policies.asking import LIMIT_OPTIONS


def repeating(
    goal: str,
    agents: AgentsChoice,
    options: LabOptions,
    results: Path,
    seed: int,
    require_signed: bool = False,
    recall: bool = True,
) -> str:
    """`labsandbox run` with the goal, the seed, and every option that is not as it would be unasked."""
    usual = LabOptions()
    asked = options.limits.model_dump(mode="json", exclude_none=True)
    chosen = [
        ("agents", agents, "auto"),
        *((name, getattr(options, name), getattr(usual, name)) for name in ("policy", "backend", "runtime", "image")),
        *((name, asked.get(name), None) for name in LIMIT_OPTIONS),
        ("gpu_wait", options.gpu_wait, usual.gpu_wait),
        ("results", str(results), "results"),
    ]
    words = [
        word
        for name, value, unasked in chosen
        if value != unasked
        for word in (f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value))
    ]
    words += ["--require-signed"] if require_signed else []
    words += [] if recall else ["--no-recall"]
    return shlex.join(["labsandbox", "run", *_goal_and_options(goal, [*words, "--seed", str(seed)])])


def _goal_and_options(goal: str, options: Sequence[str]) -> list[str]:
    """A goal that looks like an option comes last, where it cannot be taken for one."""
    return [*options, "--", goal] if goal.startswith("-") else [goal, *options]


def resuming(run: str, results: Path) -> str:
    """The command that carries on with a sprint or a sweep that broke off."""
    words = ["sweep", "--resume", run] if run.startswith("sweep_") else ["resume", run]
    return shlex.join(["labsandbox", *words, *([] if results == Path("results") else ["--results", str(results)])])
