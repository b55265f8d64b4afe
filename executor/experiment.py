"""What goes into a container and what comes out of it: plain data."""

import math
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, TypeAdapter, model_validator

from policies.model import Isolation

SCHEMA = "labsandbox.execution/1"


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Outcome(StrEnum):
    """How an execution ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    OOM = "oom"
    OUTPUT_LIMIT = "output_limit"
    GPU_MEMORY = "gpu_memory"
    DENIED = "denied"
    CANCELLED = "cancelled"
    INFRASTRUCTURE = "infrastructure"


# ---- metric records: what `lab` sends, with `t` (seconds since the experiment's start) stamped by PID 1 ----


def _number(value: object) -> float:
    """A float; JSON has no NaN or infinities, so these come as the strings that float() reads."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("not a number")
    if isinstance(value, str) and value not in {"NaN", "Infinity", "-Infinity"}:
        raise ValueError("not a number")
    try:
        return float(value)
    except OverflowError:  # JSON has integers of any length
        raise ValueError("not a number that a float can hold") from None


def _json_number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


Number = Annotated[float, BeforeValidator(_number), PlainSerializer(_json_number, when_used="json")]
# Bounds of a metric record. results/series.py, which reads the same lines in a faster way, takes them from here.
MAX_NAME = 128
MAX_VALUES = 64
LEAST_WHOLE, MOST_WHOLE = -(2**63), 2**63 - 1
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Values = Annotated[dict[Name, Number], Field(max_length=MAX_VALUES)]
Phase = Literal["tune", "confirm", "noise"]
# A hyperparameter as recorded: a number, a word, a switch.
Finite = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=LEAST_WHOLE, le=MOST_WHOLE)]
Setting = Annotated[str, Field(max_length=256)] | bool | Whole | Finite | None
Config = Annotated[dict[Name, Setting], Field(max_length=64)]
TunedName = Annotated[str, Field(min_length=1, max_length=258)]
"""Of a parameter, or `parameter[arm]`."""


class MetricRecord(_Data):
    """One `lab.log` call. Inside `lab.compare`, arm, seed and phase say which training it belongs to."""

    type: Literal["metric"] = "metric"
    t: float
    step: Finite | None = None
    arm: Name | None = None
    seed: Whole | None = None
    phase: Phase | None = None
    values: Values


class PlanRecord(_Data):
    """What `lab.compare` set out to do, written before anything runs."""

    type: Literal["plan"] = "plan"
    t: float
    factor: Name
    arms: Annotated[list[Name], Field(min_length=1, max_length=32)]
    """In the order given; the first is the baseline."""
    seeds: Annotated[list[Whole], Field(max_length=256)]
    primary: Name
    lower_is_better: bool
    rule: Annotated[str, Field(max_length=500)] = ""
    """By what it is decided, as it stood before anything ran."""
    tune: Annotated[dict[TunedName, list[Setting]], Field(max_length=512)] = {}
    """The nuisance parameters' candidate values: of each parameter for all arms, or for each of up to 32 arms."""
    trials: Annotated[int, Field(ge=0)] = 0
    """Tuning runs planned for each arm; where a best value is at an edge, every arm has more."""
    note: Annotated[str, Field(max_length=2000)] = ""
    select: Name | None = None
    """The metric by which tuning chooses; None: the primary."""
    select_lower_is_better: bool | None = None
    """Its direction; None: the primary's."""
    deterministic: bool = False
    """The primary is a count that no seed changes (bytes, parameters), so that its being constant proves nothing."""
    unit: Literal["nats"] | None = None
    """`nats`: the primary is a mean negative log-likelihood, so that exp(difference) is a ratio of perplexities."""
    repeats: Annotated[int, Field(ge=0, le=256)] = 0
    """Runs of the baseline that are made twice, for the noise floor."""
    settings: Annotated[dict[Name, Config], Field(max_length=32)] = {}
    """What sets the arms apart, and is not tuned."""


class RunRecord(_Data):
    """One training of one arm under one seed, whatever came of it."""

    type: Literal["run"] = "run"
    t: float
    arm: Name
    seed: Whole
    phase: Phase
    status: Literal["ok", "failed", "diverged", "skipped"]
    """`diverged`: the primary metric is not finite. `skipped`: no time was left."""
    values: Values = {}
    """What the training returned; `primary` of the plan among them when status is ok."""
    config: Config = {}
    """The nuisance parameters it used."""
    seconds: Finite = 0.0
    error: Annotated[str, Field(max_length=2000)] | None = None
    reseeded: Whole | None = None
    """The seed with which the training replaced the platform's for torch, if it did."""
    generators: Annotated[dict[Name, Annotated[str, Field(max_length=64)]], Field(max_length=8)] = {}
    """A digest of the state in which the training left `random` and `numpy`: the same under two seeds where they were replaced."""


class KeptRecord(_Data):
    """A size that the study's further containers must keep (`lab.keep`)."""

    type: Literal["kept"] = "kept"
    t: float
    name: Name
    value: Whole | Finite


_EXACT = 2**53
"""From here on floats leave whole numbers out."""


class Dimension(_Data):
    """The values that a hyperparameter may have."""

    kind: Literal["log", "uniform", "int", "logint", "choice"]
    low: Finite | None = None
    high: Finite | None = None
    """Included, as `low` is."""
    choices: Annotated[list[Setting], Field(max_length=64)] = []

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind == "choice":
            if not self.choices or len(set(self.choices)) < len(self.choices):
                raise ValueError("no choices, or the same one twice")
        elif self.low is None or self.high is None or not self.low < self.high < math.inf > self.high - self.low:
            raise ValueError("no range")
        elif self.kind.startswith("log") and self.low <= 0:
            raise ValueError("a logarithmic range begins above zero")
        elif self.kind.endswith("int") and not all(one == int(one) < _EXACT > -one for one in (self.low, self.high)):
            raise ValueError("a range of whole numbers has whole ends")
        return self

    def holds(self, value: Setting) -> bool:
        """Whether it is one of the values."""
        if self.kind == "choice":
            return any(value == one and type(value) is type(one) for one in self.choices)
        if self.low is None or self.high is None or isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and (value == int(value) or not self.kind.endswith("int"))


class ParamsRecord(_Data):
    """What `lab.params` declared, and with what it runs."""

    type: Literal["params"] = "params"
    t: float
    space: Annotated[dict[Name, Dimension], Field(min_length=1, max_length=32)]
    chosen: Config

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.space.keys() != self.chosen.keys() or not all(
            one.holds(self.chosen[name]) for name, one in self.space.items()
        ):
            raise ValueError("every parameter has one of its values, and nothing else has")
        return self


Landmark = PlanRecord | RunRecord | KeptRecord | ParamsRecord
"""The few records between which metrics lie."""
AnyRecord = MetricRecord | Landmark
RECORD: TypeAdapter[AnyRecord] = TypeAdapter(
    Annotated[AnyRecord, Field(discriminator="type")], config=ConfigDict(defer_build=True)
)


class Left(_Data):
    """What a study's containers so far left for the next: kept.py of `lab` reads it."""

    kept: dict[Name, Whole | Finite] = {}
    chosen: dict[Name, Config] = {}
    """What tuning chose for each arm; empty while it has not ended."""
    runs: tuple[RunRecord, ...] = ()
    """Trainings that need not be made again."""


# ---- what goes in ----


class Experiment(_Data):
    """One file of Python and what it asks for."""

    code: str
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    requirements: Annotated[tuple[Annotated[str, Field(max_length=200)], ...], Field(max_length=50)] = ()
    """Packages that it needs (PEP 508)."""
    imports: Annotated[tuple[Annotated[str, Field(max_length=200)], ...], Field(max_length=500)] = ()
    """Top-level modules that it cannot do without."""
    params: Config = {}
    """Values for what it declares with `lab.params`; those that are not given have their defaults."""
    left: Left | None = None
    """What earlier containers of the same study left."""
    more: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds of further containers that may go on with it."""


# ---- what came of it ----


class Limit(_Data):
    """One limit, from wish to proof."""

    requested: float | None
    """What the request asked for; None when it left the policy's value."""
    effective: float
    """Seconds, bytes, or a count."""
    enforced_by: str
    """Who holds it: a cgroup file, a mount option, a resource limit, or the host's reader."""
    observed: float | None
    """What the live container was read to have; None where only the host's reader holds it."""


class GpuSample(_Data):
    """A device at a moment of a run; None where its driver does not tell."""

    t: float
    memory_bytes: int
    """In use by the experiment."""
    utilisation: float | None
    """Percent of the time that a kernel ran, whosever."""
    power_w: float | None
    temperature_c: float | None


class GpuUsage(_Data):
    """What one device was used for; None where its driver does not tell."""

    uuid: str
    name: str
    shared: bool
    """Others may have been on the device: utilisation, power and energy are then theirs as well."""
    peak_memory_bytes: int
    mean_utilisation: float | None
    energy_j: float | None
    """By the device's own counter, from before the start to after the end."""
    samples: list[GpuSample] = []


class Usage(_Data):
    """What the container used, read from its cgroup at the end; None where it could not be read."""

    cpu_s: float | None = None
    peak_memory_bytes: int | None = None
    peak_pids: int | None = None
    samples: list[dict[str, float]] = []
    gpus: list[GpuUsage] = []


class Timings(_Data):
    """Seconds of each step."""

    queue_s: float = 0.0
    prepare_s: float = 0.0
    start_s: float = 0.0
    run_s: float = 0.0
    collect_s: float = 0.0
    destroy_s: float = 0.0


class Artifact(_Data):
    """A file that came back."""

    name: str
    bytes: int
    sha256: str


class PolicyRef(_Data):
    """The policy that a decision was made under."""

    name: str
    sha256: str


class ImageRef(_Data):
    """What was inside the container."""

    reference: str
    digest: str
    """The engine's image id, or the digest of the lock for the daemonless environment."""


class AuditRef(_Data):
    """Sequence numbers of the first and last audit record of this execution."""

    first: int
    last: int


class Execution(_Data):
    """The record of one experiment's run."""

    schema_: Annotated[str, Field(alias="schema")] = SCHEMA
    execution_id: str
    outcome: Outcome
    success: bool
    returncode: int | None
    """Exit status of the experiment's process; None if it did not exit by itself."""
    signal: int | None
    """Signal that ended it, if one did."""
    message: str
    """One line for people: what ended it."""
    stdout: str
    stderr: str
    stdout_dropped_bytes: int
    stderr_dropped_bytes: int
    started_at: datetime | None
    ended_at: datetime
    timings: Timings
    limits: dict[str, Limit]
    usage: Usage
    metrics: list[AnyRecord]
    """Every plan and run record, and the last metric of each training; metrics.jsonl has them all."""
    metrics_total: int
    metrics_rejected: int
    """Lines on the metric channel that were no valid record."""
    artifacts: list[Artifact]
    artifacts_skipped: list[str]
    """Why files that were there did not come back, one line each."""
    policy: PolicyRef
    image: ImageRef | None
    packages: list[str] = []
    """What was fetched for it: `name==version --hash=sha256:…`."""
    backend: str
    runtime: str
    isolation: Isolation = "kernel"
    watched: dict[str, str] = {}
    """Limits that the kernel did not hold, which the host watched as well as it could, and why."""
    gpus: list[str] = []
    audit: AuditRef

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, defer_build=True)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data, the schema's own names."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `as_json` wrote. Raises pydantic.ValidationError."""
        return cls.model_validate(data)


class Sink(Protocol):
    """Where an execution's results go while it runs. Called from one thread, in order."""

    def log(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Raw bytes of the experiment's output; hostile."""

    def record(self, record: AnyRecord) -> None:
        """A metric, plan or run record."""

    def artifact(self, name: str) -> "ArtifactWriter":
        """A place for one artifact; `name` is relative, normalised and safe to join to a folder."""


class ArtifactWriter(Protocol):
    """Takes one artifact's bytes; only `commit` makes it appear."""

    def write(self, data: bytes) -> None: ...

    def commit(self) -> None: ...

    def abort(self) -> None: ...
