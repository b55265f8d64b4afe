"""One experiment in one throwaway container: decide, prepare, create, check, stream, collect, destroy."""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from executor.backends.base import Backend, Container, ContainerSpec, Progress
from executor.channel import Channel, library_files, opening
from executor.conversation import COLLECT_GRACE, START_GRACE, Conversation, Report
from executor.errors import ExecutorError, RequestDenied, SandboxUnavailable
from executor.experiment import (
    AuditRef,
    Execution,
    Experiment,
    ImageRef,
    Limit,
    Outcome,
    PolicyRef,
    Sink,
    Timings,
    Usage,
)
from executor.limits import check, read_back, table
from executor.observe import Cgroup
from executor.ownership import Owner
from executor.verdict import judge
from policies.audit import AuditLog
from policies.decision import Capabilities, Decision, Request, decide
from policies.model import Ceiling, Policy
from sandbox_images.lock import HERE, unmet

_MAX_SAMPLES = 600
_T = TypeVar("_T")


@dataclass
class _Run:
    """What is known of a run so far; the record of it is made from this whatever happens."""

    id: str
    experiment: Experiment
    environment: tuple[str, ...]
    """NAME=value pairs that the policy adds."""
    decision: Decision
    first_record: int
    limits: dict[str, Limit]
    image: ImageRef | None = None
    report: Report = field(default_factory=Report)
    usage: Usage = field(default_factory=Usage)
    samples: list[dict[str, float]] = field(default_factory=list)
    oom: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    """Why it is infrastructure's fault, when it is."""


class Executor:
    """Runs experiments on one backend. One run at a time; use several executors for more."""

    def __init__(
        self,
        backend: Backend,
        audit: AuditLog,
        ceilings: Iterable[Ceiling] = (),
        progress: Progress = lambda text: None,
    ) -> None:
        self.backend = backend
        self._audit = audit
        self._ceilings = tuple(ceilings)
        self._progress = progress

    def sweep(self) -> list[str]:
        """Removes what crashed runs of this user left on the backend; returns the containers' ids."""
        removed = self.backend.sweep()
        if removed:
            self._audit.append("sweep", backend=self.backend.name, removed=removed)
        return removed

    def preflight(self, policy: Policy, request: Request) -> None:
        """Makes sure that an experiment could run under these terms, before anybody works on one.

        Builds or finds the image. Raises RequestDenied (which the audit log keeps) or SandboxUnavailable.
        """
        capabilities = self.backend.capabilities()
        decision = decide(request, policy, capabilities, self._ceilings)
        if not decision.allow:
            self._record_decision(decision, request, capabilities, execution=None, sprint=None, code_sha256=None)
            raise RequestDenied(decision.reason)
        if decision.limits.gpus > 0:
            raise SandboxUnavailable(_no_gpus(decision, capabilities))
        self.backend.prepare(self._progress)

    def run(
        self,
        experiment: Experiment,
        policy: Policy,
        request: Request,
        sink: Sink,
        sprint: str | None = None,
    ) -> Execution:
        """Runs `experiment` and returns its record, whatever came of it.

        Results reach `sink` as they come. Raises SandboxUnavailable when nothing could be started, AuditError when
        the log cannot be written, and ValueError for requirements that are none.
        """
        run = self._decide(experiment, policy, request, sprint)
        if not run.decision.allow:
            return self._close(run, Outcome.DENIED, run.decision.reason)
        if run.decision.limits.gpus > 0:
            reason = _no_gpus(run.decision, self.backend.capabilities())
            self._close(run, Outcome.INFRASTRUCTURE, reason)
            raise SandboxUnavailable(reason)
        try:
            run.image = self._timed(run, "prepare_s", lambda: self.backend.prepare(self._progress))
        except SandboxUnavailable as error:
            self._close(run, Outcome.INFRASTRUCTURE, str(error))
            raise
        try:
            self._in_container(run, sink)
        except (ExecutorError, OSError) as error:
            run.failure = str(error)
        except KeyboardInterrupt:
            run.report.ended = "cancelled"  # before it ran, or for the second time: it ends here, and is recorded
        except Exception as error:
            # Nobody foresaw it; the audit log has the end of every run all the same.
            self._close(run, Outcome.INFRASTRUCTURE, f"an error of labsandbox itself: {type(error).__name__}")
            raise
        return self._close(run, *judge(run.report, run.oom, run.failure, run.decision.limits))

    def _decide(self, experiment: Experiment, policy: Policy, request: Request, sprint: str | None) -> _Run:
        missing = tuple(unmet(experiment.requirements))
        request = request.model_copy(update={"unmet_requirements": missing})
        capabilities = self.backend.capabilities()
        decision = decide(request, policy, capabilities, self._ceilings)
        run_id = secrets.token_hex(8)
        digest = hashlib.sha256(experiment.code.encode("utf-8", "surrogatepass")).hexdigest()
        sequence = self._record_decision(
            decision, request, capabilities, execution=run_id, sprint=sprint, code_sha256=digest
        )
        limits = table(decision, request.limits.given(), {})
        return _Run(run_id, experiment, policy.environment, decision, sequence, limits)

    def _record_decision(
        self, decision: Decision, request: Request, capabilities: Capabilities, **about: str | None
    ) -> int:
        return self._audit.append(
            "decision",
            allow=decision.allow,
            policy={"name": decision.policy, "sha256": decision.policy_sha256},
            requested=request.limits.model_dump(mode="json", exclude_none=True),
            effective=decision.limits.model_dump(mode="json"),
            rules=[rule.model_dump(mode="json") for rule in decision.rules],
            backend=capabilities.backend,
            runtime=capabilities.runtime,
            **about,
        )

    def _in_container(self, run: _Run, sink: Sink) -> None:
        assert run.image is not None
        lifetime = run.decision.limits.wall + 2 * START_GRACE + 2 * COLLECT_GRACE
        owner = Owner.this_process(lifetime)
        began = time.monotonic()
        container = self.backend.create(ContainerSpec(run.id, run.decision.limits, owner, run.image))
        try:
            connection = container.start()
            channel = Channel(connection)
            try:
                self._talk(run, container, channel, sink, began)
            finally:
                self._read_end(run, container)
                container.kill()
                channel.close()
        finally:
            self._timed(run, "destroy_s", container.destroy)

    def _talk(self, run: _Run, container: Container, channel: Channel, sink: Sink, began: float) -> None:
        talk = Conversation(channel, run.decision.limits, sink)
        run.report = talk.report
        try:
            self._start(run, container, talk, began)
            self._listen(run, container, talk)
        except ExecutorError as error:
            said = channel.diagnosis.decode("utf-8", "replace").strip().splitlines()
            run.failure = f"{error} ({said[-1][-300:]})" if said else str(error)
        finally:
            talk.abandon_artifact()

    def _start(self, run: _Run, container: Container, talk: Conversation, began: float) -> None:
        library = library_files(HERE / "lab")
        files = {f"lab/{name}": data for name, data in library.items()}
        files["ml_utils.py"] = (HERE / "ml_utils.py").read_bytes()
        greeting = talk.hello(opening(self._job(run), run.experiment.code, files))
        observed = read_back(container)
        run.limits = table(run.decision, _requested(run), observed)
        check(run.limits, observed)
        self._audit.append(
            "start",
            execution=run.id,
            container=container.id,
            image=run.image.model_dump() if run.image else None,
            observed=observed,
            python=str(greeting.get("python"))[:40],
        )
        talk.go()
        run.seconds["start_s"] = time.monotonic() - began

    def _listen(self, run: _Run, container: Container, talk: Conversation) -> None:
        pid = container.pid()
        group = Cgroup.of(pid, container.id) if pid is not None else None

        def tick(seconds: float) -> None:
            if group is not None and len(run.samples) < _MAX_SAMPLES:
                run.samples.append({"t": round(seconds, 3), **group.sample()})

        try:
            talk.listen(tick)
        except KeyboardInterrupt:
            talk.stop("cancelled")
            talk.listen(tick)

    def _read_end(self, run: _Run, container: Container) -> None:
        """Reads the control group while PID 1 still holds it open."""
        pid = container.pid()
        group = Cgroup.of(pid, container.id) if pid is not None else None
        if group is not None:
            usage = group.usage()
            peak = max((int(sample.get("pids", 0)) for sample in run.samples), default=None)
            run.usage = usage.model_copy(update={"peak_pids": usage.peak_pids or peak, "samples": run.samples})
            run.oom = group.oom_kills() > 0
        run.oom = run.oom or container.oom_killed()

    def _job(self, run: _Run) -> dict[str, Any]:
        limits = run.decision.limits
        threads = str(max(1, int(limits.cpus)))
        return {
            "wall_s": limits.wall,
            "output_bytes": limits.output,
            "metrics_bytes": limits.metrics,
            "artifact_bytes": limits.artifacts,
            "artifact_files": limits.artifact_files,
            "open_files": limits.open_files,
            "environment": {
                "HOME": "/tmp",
                "LANG": "C.UTF-8",
                "LAB_CPUS": f"{limits.cpus:g}",
                "LAB_SEED": str(run.experiment.seed),
                "MPLBACKEND": "Agg",
                "MPLCONFIGDIR": "/tmp",
                "OMP_NUM_THREADS": threads,
                "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait stall everybody on a shared machine
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONHASHSEED": str(run.experiment.seed),
                "TMPDIR": "/tmp",
                **dict(pair.split("=", 1) for pair in run.environment),
            },
        }

    def _timed(self, run: _Run, name: str, work: Callable[[], _T]) -> _T:
        began = time.monotonic()
        try:
            return work()
        finally:
            run.seconds[name] = time.monotonic() - began

    def _close(self, run: _Run, outcome: Outcome, message: str) -> Execution:
        """The last audit record and the execution's own."""
        report = run.report
        if (hit := _LIMIT_HIT.get(outcome)) is not None:
            effective = getattr(run.decision.limits, hit)
            self._audit.append("limit", execution=run.id, limit=hit, effective=effective, outcome=outcome.value)
        last = self._audit.append(
            "end",
            execution=run.id,
            outcome=outcome.value,
            message=message[:500],
            returncode=report.returncode,
            signal=report.signal,
            usage=run.usage.model_dump(exclude={"samples", "gpus"}),
            output_bytes={"stdout": report.out.total, "stderr": report.err.total},
            artifacts=len(report.artifacts),
        )
        timings = {**run.seconds, "run_s": report.run_s, "collect_s": report.collect_s}
        capabilities = self.backend.name, self.backend.runtime
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
            usage=run.usage,
            metrics=[*report.plans_and_runs, *report.last_metrics.values()],
            metrics_total=report.metrics_total,
            metrics_rejected=report.metrics_rejected,
            artifacts=report.artifacts,
            artifacts_skipped=report.skipped,
            policy=PolicyRef(name=run.decision.policy, sha256=run.decision.policy_sha256),
            image=run.image,
            backend=capabilities[0],
            runtime=capabilities[1],
            audit=AuditRef(first=run.first_record, last=last),
        )


_LIMIT_HIT = {Outcome.TIMEOUT: "wall", Outcome.OOM: "memory", Outcome.OUTPUT_LIMIT: "output"}


def _no_gpus(decision: Decision, capabilities: Capabilities) -> str:
    return f"asked for {decision.limits.gpus} GPU(s): {capabilities.gpus_why}"


def _requested(run: _Run) -> dict[str, float]:
    return {name: limit.requested for name, limit in run.limits.items() if limit.requested is not None}
