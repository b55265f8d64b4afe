"""What a sweep is asked to be, written into its folder before anything runs."""

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.command import resuming
from orchestrator.errors import UsageProblem
from orchestrator.lab_setup import LabOptions
from results.store import SWEEP, SWEPT, RunFolder, StoreError, read_object

MAX_TRIALS = 10_000
Sampler = Literal["tpe", "random", "grid"]
SPEC, SUMMARY, REFUSED = SWEEP, SWEPT, "refused.json"


class Unfit(UsageProblem):
    """An experiment that no sweep can be made of: it would be refused again."""


class SweepSpec(BaseModel):
    """Enough to carry a sweep out, now or after a crash. The code is beside it, in experiment.py."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Annotated[str, Field(alias="schema")] = "labsandbox.sweep/1"
    command: str = ""
    """The command line that began it."""
    goal: str | None = None
    """What agents were asked; None where a file was given."""
    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] = 20
    parallel: Annotated[int, Field(ge=1, le=64)] = 1
    sampler: Sampler = "tpe"
    prune: bool = False
    metric: str | None = None
    """By which trials are compared; None: the first trial's `val_loss`, another loss, or its last metric."""
    maximize: bool = False
    confirm: Annotated[int, Field(ge=0, le=256)] = 6
    """Fresh seeds under which the best configuration meets the defaults."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    requirements: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    options: LabOptions = Field(default_factory=LabOptions)


def new_sweep(folder: RunFolder, spec: SweepSpec, code: str) -> None:
    """Writes what a sweep is asked to be."""
    folder.write_text("experiment.py", code)
    folder.write_text(SPEC, spec.model_dump_json(by_alias=True, indent=2) + "\n")


def recorded_sweep(folder: RunFolder) -> SweepSpec:
    """What a sweep's folder says it is. Raises StoreError."""
    try:
        return SweepSpec.model_validate(json.loads((folder.path / SPEC).read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(
            f"{folder.id} cannot be resumed: {SPEC} is missing or damaged ({type(error).__name__})"
        ) from None


def swept(folder: Path) -> dict[str, Any] | None:
    """The summary of a sweep that has ended."""
    try:
        found = json.loads((folder / SUMMARY).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def refuse(folder: RunFolder, why: str) -> None:
    """Puts on record that a sweep cannot be carried out, however often it is resumed."""
    folder.write_json(REFUSED, {"why": why})


def not_ended(folder: RunFolder) -> str:
    """Why a sweep has no summary, and what to do."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return f"refused: {read_object(folder.path / REFUSED).get('why')}"
    return f"not finished: {resuming(folder.id, folder.path.parent)} carries on"
