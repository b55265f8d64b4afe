"""Options that several commands share, and what they become."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from orchestrator.agents.choice import AgentsChoice
from orchestrator.choices import BackendChoice
from orchestrator.errors import UsageProblem
from policies.asking import GPU_WAIT, LIMIT_OPTIONS
from results.export.names import DestinationName

if TYPE_CHECKING:
    from orchestrator.lab_setup import LabOptions
    from results.export.live import Tracking

_LIMITS = "Limits, only to tighten"
_GPUS = "GPUs"
_TRACKER = "Other tools"
_LONGEST = 31_536_000  # seconds of a year
_MOST = 2**31 - 1
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}

PolicyName = Annotated[str, typer.Option("--policy", help="A policy's name, or a YAML file.", show_default=True)]
Backend = Annotated[
    BackendChoice, typer.Option("--backend", help="docker: an engine; oci: no daemon; auto: says which and why.")
]
Runtime = Annotated[str | None, typer.Option("--runtime", help="The OCI runtime, such as runc.", show_default=False)]
Image = Annotated[
    str | None,
    typer.Option("--image", help="Any image with Python; or a Python environment's folder (oci).", show_default=False),
]
Gpus = Annotated[
    int | None, typer.Option("--gpus", help="Number of GPUs.", min=0, show_default=False, rich_help_panel=_GPUS)
]
GpuMemory = Annotated[
    str | None,
    typer.Option("--gpu-memory", help="Of each GPU at least, and at most: 16GiB.", rich_help_panel=_GPUS),
]
GpuWait = Annotated[
    float,
    typer.Option("--gpu-wait", metavar="SECONDS", help="How long to queue for GPUs.", rich_help_panel=_GPUS),
]
Seed = Annotated[int, typer.Option("--seed", help="The base seed.", min=0, max=2**32 - 1)]
Results = Annotated[Path, typer.Option("--results", help="Folder for results.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on standard output.")]
Agents = Annotated[
    AgentsChoice,
    typer.Option("--agents", help="Who answers: Lumenbridge, or a local team (a model's or the playbook)."),
]
RequireSigned = Annotated[bool, typer.Option("--require-signed", help="Take no agent's answer without a signature.")]
Recall = Annotated[bool, typer.Option("--recall/--no-recall", help="Tell the team what earlier sprints found.")]
Wall = Annotated[str | None, typer.Option("--wall", help="Time, as 20s.", rich_help_panel=_LIMITS)]
Cpus = Annotated[float | None, typer.Option("--cpus", help="Cores, as 1.5.", rich_help_panel=_LIMITS)]
Memory = Annotated[str | None, typer.Option("--memory", help="Memory, as 1GiB.", rich_help_panel=_LIMITS)]
Pids = Annotated[int | None, typer.Option("--pids", help="Processes and threads.", rich_help_panel=_LIMITS)]
Workspace = Annotated[str | None, typer.Option("--workspace", help="Files, as 256MiB.", rich_help_panel=_LIMITS)]

TrackTo = Annotated[
    DestinationName | None,
    typer.Option("--tracker", help="Also tell another tool, as it goes.", show_default=False, rich_help_panel=_TRACKER),
]
TrackerOut = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for it.", show_default="RESULTS/tracking/TOOL", rich_help_panel=_TRACKER),
]
Online = Annotated[
    bool,
    typer.Option("--online", help="Use the network, with your own account (wandb, mlflow).", rich_help_panel=_TRACKER),
]


def tracking(to: DestinationName | None, out: Path | None, online: bool, results: Path) -> "Tracking | None":
    """Raises ExportError where the tool is not installed, UsageProblem for options without a tool."""
    if to is None:
        if out is not None or online:
            raise UsageProblem("--out and --online belong to --tracker")
        return None
    from results.export.destinations import check_installed, check_online
    from results.export.live import Tracking

    check_installed(to)
    check_online(to, online)
    return Tracking(to, out or results / "tracking" / to, online)


class Asked(NamedTuple):
    """The options of a lab, in the order of `--help`, as a command line has them. (A dataclass takes 1 ms longer to make.)"""

    policy: PolicyName = "default"
    backend: Backend = "auto"
    runtime: Runtime = None
    image: Image = None
    gpus: Gpus = None
    gpu_memory: GpuMemory = None
    gpu_wait: GpuWait = GPU_WAIT
    wall: Wall = None
    cpus: Cpus = None
    memory: Memory = None
    pids: Pids = None
    workspace: Workspace = None

    def of_lab(self) -> "LabOptions":
        """What a lab is opened with. Raises UsageProblem for a limit that cannot be read."""
        from pydantic import ValidationError

        from orchestrator.lab_setup import LabOptions
        from policies.model import PartialLimits

        try:
            limits = PartialLimits.model_validate({name: getattr(self, name) for name in LIMIT_OPTIONS})
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            raise UsageProblem(f"--{name.replace('_', '-')}: {_reason(name, dict(first))}") from None
        if not 0 <= self.gpu_wait <= _LONGEST:
            raise UsageProblem(f"--gpu-wait: a number between 0 and {_LONGEST} is needed, not {self.gpu_wait:g}")
        if self.pids is not None and self.pids > _MOST:
            raise UsageProblem(f"--pids: at most {_MOST}")
        return LabOptions(self.policy, self.backend, self.runtime, self.image, limits, self.gpu_wait)


def _reason(name: str, error: dict[str, Any]) -> str:
    """What is wrong with a limit, in our words."""
    from policies.units import format_limit

    bound = next(((how, error["ctx"][how]) for how in _BOUNDS if how in error.get("ctx", {})), None)
    if bound is None:
        return str(error["msg"]).removeprefix("Value error, ")
    how, value = bound
    if isinstance(error["input"], float) and error["input"] != error["input"]:
        return f"a number between 0 and {value:g} is needed, not nan"
    told = format_limit(name, value)
    return f"{_BOUNDS[how]} {told} is needed" if how in ("ge", "gt") else f"{_BOUNDS[how]} {told} can be asked for"


def with_lab(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `Asked`, where its signature has `asked`, and `asked` all of them as one value."""
    offered = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in inspect.signature(Asked).parameters.values()]
    parameters: list[inspect.Parameter] = []
    for one in inspect.signature(command).parameters.values():
        parameters += offered if one.name == "asked" else [one]

    @wraps(command)
    def whole(**given: Any) -> None:
        command(asked=Asked(**{one.name: given.pop(one.name) for one in offered}), **given)

    # Typer reads a command's options from these.
    whole.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    whole.__annotations__ = {one.name: one.annotation for one in parameters}
    return whole
