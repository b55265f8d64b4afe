"""What a goal becomes: a factor, its arms, and the harness that tests them. Plain data."""

from dataclasses import dataclass, field
from typing import Literal

HOW_TO_CONNECT = "set LUMENBRIDGE_BASE_URL to let a model answer any goal"

Harness = Literal["transformer", "classifier"]
Setting = str | int | float | bool | None


@dataclass(frozen=True)
class Arm:
    """One level of the factor."""

    name: str
    settings: dict[str, Setting]
    """What this arm changes in the harness's base settings."""


@dataclass(frozen=True)
class Study:
    """One controlled comparison. The first arm is the baseline."""

    goal: str
    factor: str
    arms: tuple[Arm, ...]
    harness: Harness
    primary: str = "test_loss"
    lower_is_better: bool = True
    deterministic: bool = False
    """The primary metric is a count that no seed changes."""
    tune: dict[str, dict[str, list[float]] | list[float]] = field(default_factory=dict)
    """Nuisance parameters, tuned for every arm with equally many trials: one after the other, in this order."""
    seeds: int = 8
    expectation: str = ""
    """What is generally known of this factor, in a sentence; not about this run."""
    earlier: str = ""
    """From where the grids were moved, in a sentence; empty where they were not."""
    threat: str = ""
    """What could make the comparison unfair, and what is done about it."""

    @property
    def arm_names(self) -> str:
        """The names of the arms, as in a sentence."""
        names = [arm.name for arm in self.arms]
        return ", ".join(names[:-1]) + f" and {names[-1]}"


def optimizer_settings(name: str) -> dict[str, Setting]:
    """An optimizer, and the decoupled weight decay that it is customarily given: Lion's 3 to 10 times AdamW's, its rate
    being lower (Chen et al. 2023)."""
    decay = {"AdamW": 0.01, "Lion": 0.05}.get(name)
    return {"optimizer": name} if decay is None else {"optimizer": name, "weight_decay": decay}


class UnknownGoal(ValueError):
    """A goal that the playbook cannot read; the text says what it knows, in one line."""
