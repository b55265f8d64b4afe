"""What is known of one run while it goes, and the record that is made of it, whatever happened."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from executor.conversation import Report
from executor.dependencies import Wheels
from executor.experiment import (
    AuditRef,
    Execution,
    Experiment,
    GpuUsage,
    ImageRef,
    Limit,
    Outcome,
    PolicyRef,
    Timings,
    Usage,
)
from executor.gpus.lending import Loan
from executor.leases import Unwanted
from executor.warm import Kind, Warm
from policies.decision import Capabilities, Decision, Request
from policies.model import Policy


@dataclass
class Run:
    """What is known of a run so far; the record of it is made from this whatever happens."""

    id: str
    sprint: str | None
    experiment: Experiment
    policy: Policy
    request: Request
    decision: Decision
    capabilities: Capabilities
    packages: tuple[str, ...]
    """Requirements that the sandbox does not hold and the policy lets us fetch."""
    limits: dict[str, Limit]
    first_record: int = 0
    """The decision's number in the audit log."""
    kind: Kind | None = None
    """What a container made ahead for it is made from; None where none may be."""
    warm: Warm | None = None
    """The container that waited for it; None where it has one of its own."""
    loan: Loan | None = None
    image: ImageRef | None = None
    wheels: Wheels = field(default_factory=Wheels)
    report: Report = field(default_factory=Report)
    usage: Usage = field(default_factory=Usage)
    samples: list[dict[str, float]] = field(default_factory=list)
    cpu_before: float = 0.0
    """CPU seconds that the container had used before the experiment began."""
    oom: bool = False
    pids_refused: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    gpu_usage: list[GpuUsage] = field(default_factory=list)
    gpu_seconds: float = 0.0
    """Device time that it had."""
    unwanted: Unwanted | None = None
    refused: BaseException | None = None
    """Why it could not even queue."""
    placed: bool = False
    """Whether it has its place among the machine's runs."""
    failure: str | None = None
    """Why it is infrastructure's fault, when it is."""


_LIMIT_OF_END = {
    "timeout": "wall",
    "output_limit": "output",
    "metrics_limit": "metrics",
    "watched_memory": "memory",
    "watched_pids": "pids",
    "host_memory": "memory",
    "gpu_memory": "gpu_memory",
}


def limits_hit(run: Run) -> list[str]:
    """The limits that the run ran into, whether or not they ended it."""
    hit = {_LIMIT_OF_END.get(run.report.ended), "memory" if run.oom else None, "pids" if run.pids_refused else None}
    return sorted(name for name in hit if name is not None)


def execution_of(run: Run, outcome: Outcome, message: str, audit: AuditRef) -> Execution:
    """The execution's own record."""
    report = run.report
    timings = {**run.seconds, "run_s": report.run_s, "collect_s": report.collect_s}
    return Execution(
        execution_id=run.id,
        outcome=outcome,
        success=outcome is Outcome.COMPLETED,
        returncode=report.returncode,
        signal=report.signal,
        message=message,
        stdout=report.out.text(),
        stderr=report.err.text(),
        stdout_dropped_bytes=report.dropped["stdout"],
        stderr_dropped_bytes=report.dropped["stderr"],
        started_at=report.started_at,
        ended_at=datetime.now(UTC),
        timings=Timings(**{name: round(value, 4) for name, value in timings.items()}),
        limits=run.limits,
        usage=run.usage.model_copy(update={"gpus": run.gpu_usage}),
        metrics=[*report.plans_and_runs, *report.last_metrics.values()],
        metrics_total=report.metrics_total,
        metrics_rejected=report.metrics_rejected,
        artifacts=report.artifacts,
        artifacts_skipped=report.skipped,
        policy=PolicyRef(name=run.decision.policy, sha256=run.decision.policy_sha256),
        image=run.image,
        packages=list(run.wheels.lock),
        backend=run.capabilities.backend,
        runtime=run.capabilities.runtime,
        isolation=run.capabilities.isolation,
        watched=run.decision.watched,
        gpus=[device.uuid for device in run.loan.devices] if run.loan else [],
        audit=audit,
    )
