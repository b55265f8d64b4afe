"""Options that several commands share, and what they become."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from orchestrator.agents.connect import AgentsChoice
from orchestrator.errors import UsageProblem
from orchestrator.lab_setup import BackendChoice, LabOptions
from policies.model import PartialLimits

_LIMITS = "Limits, only to tighten"

PolicyName = Annotated[str, typer.Option("--policy", help="A policy's name, or a YAML file.", show_default=True)]
Backend = Annotated[
    BackendChoice, typer.Option("--backend", help="docker: an engine; oci: no daemon; auto: says which and why.")
]
Runtime = Annotated[str | None, typer.Option("--runtime", help="The OCI runtime, such as runc.", show_default=False)]
Image = Annotated[str | None, typer.Option("--image", help="Any image with Python (docker).", show_default=False)]
Gpus = Annotated[int | None, typer.Option("--gpus", help="Number of GPUs.", min=0, show_default=False)]
Seed = Annotated[int, typer.Option("--seed", help="The base seed.", min=0, max=2**32 - 1)]
Results = Annotated[Path, typer.Option("--results", help="Folder for results.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on standard output.")]
Agents = Annotated[
    AgentsChoice,
    typer.Option("--agents", help="Who answers: Lumenbridge, or a local team (a model's or the playbook)."),
]
RequireSigned = Annotated[bool, typer.Option("--require-signed", help="Take no agent's answer without a signature.")]
Wall = Annotated[str | None, typer.Option("--wall", help="Time, as 20s.", rich_help_panel=_LIMITS)]
Cpus = Annotated[float | None, typer.Option("--cpus", help="Cores, as 1.5.", rich_help_panel=_LIMITS)]
Memory = Annotated[str | None, typer.Option("--memory", help="Memory, as 1GiB.", rich_help_panel=_LIMITS)]
Pids = Annotated[int | None, typer.Option("--pids", help="Processes and threads.", rich_help_panel=_LIMITS)]
Workspace = Annotated[str | None, typer.Option("--workspace", help="Files, as 256MiB.", rich_help_panel=_LIMITS)]


def lab_options(
    policy: str, backend: BackendChoice, runtime: str | None, image: str | None, **limits: Any
) -> LabOptions:
    """Raises UsageProblem for a limit that cannot be read."""
    try:
        asked = PartialLimits.model_validate(limits)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageProblem(f"--{first['loc'][0]}: {reason}") from None
    return LabOptions(policy, backend, runtime, image, asked)
