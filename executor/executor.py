"""One experiment in one throwaway container: decide, prepare, create, check, stream, collect, destroy."""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from executor.backends.base import Backend, Container, ContainerSpec, Progress
from executor.channel import Channel, opening
from executor.conversation import COLLECT_GRACE, START_GRACE, TICK, Conversation
from executor.dependencies import fetch
from executor.egress import Egress, Resolve, resolve
from executor.errors import (
    ExecutorError,
    InfrastructureError,
    PackagesUnavailable,
    RequestDenied,
    SandboxUnavailable,
)
from executor.experiment import AuditRef, Execution, Experiment, Outcome, Sink
from executor.job import job_of, library
from executor.limits import check, table
from executor.ownership import Owner
from executor.posture import posture_of
from executor.run import Run, execution_of, limits_hit
from executor.verdict import judge
from executor.watchdog import INTERVAL, Watchdog
from policies.audit import AuditLog
from policies.decision import Capabilities, Decision, Request, decide
from policies.merge import terms_here
from policies.model import Ceiling, Policy
from policies.state import cache_dir
from sandbox_images.lock import unmet, unmet_imports

_MAX_SAMPLES = 600
_T = TypeVar("_T")


class Executor:
    """Runs experiments on one backend. Runs may overlap: each keeps what is its own to itself."""

    def __init__(
        self,
        backend: Backend,
        audit: AuditLog,
        ceilings: Iterable[Ceiling] = (),
        progress: Progress = lambda text: None,
        cache: Path | None = None,
        resolve: Resolve = resolve,
    ) -> None:
        self.backend = backend
        self._audit = audit
        self._cache = cache or cache_dir()
        self._resolve = resolve
        self._ceilings = tuple(ceilings)
        self._progress = progress

    def sweep(self) -> list[str]:
        """Removes what crashed runs of this user left on the backend; returns the containers' ids."""
        removed = self.backend.sweep()
        if removed:
            self._audit.append("sweep", backend=self.backend.name, removed=removed)
        return removed

    def preflight(self, policy: Policy, request: Request) -> Decision:
        """Makes sure that an experiment could run under these terms, before anybody works on one.

        Builds or finds the image, and returns the terms as they would be. Raises RequestDenied (which the audit log
        keeps) or SandboxUnavailable.
        """
        capabilities = self.backend.capabilities()
        decision = decide(request, policy, capabilities, self._ceilings)
        if not decision.allow:
            self._record_decision(decision, request, capabilities, execution=None, sprint=None, code_sha256=None)
            raise RequestDenied(decision.reason)
        if decision.limits.gpus > 0:
            raise SandboxUnavailable(_no_gpus(decision, capabilities))
        self.backend.prepare(self._progress)
        return decision

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
            self._timed(run, "prepare_s", lambda: self._prepare(run))
            self._in_container(run, sink)
        except PackagesUnavailable as error:
            return self._close(run, Outcome.FAILED, str(error))
        except SandboxUnavailable as error:
            self._close(run, Outcome.INFRASTRUCTURE, str(error))
            raise
        except (ExecutorError, OSError) as error:
            run.failure = str(error)
        except KeyboardInterrupt:
            run.report.ended = "cancelled"  # before it ran, or for the second time: it ends here, and is recorded
        except Exception as error:
            # Nobody foresaw it; the audit log has the end of every run all the same.
            self._close(run, Outcome.INFRASTRUCTURE, f"an error of labsandbox itself: {type(error).__name__}")
            raise
        crowded = run.capabilities.isolation == "gvisor" and run.pids_refused > 0
        return self._close(run, *judge(run.report, run.oom, crowded, run.failure, run.decision.limits))

    def _decide(self, experiment: Experiment, policy: Policy, request: Request, sprint: str | None) -> Run:
        packages = self._packages(experiment, policy)
        request = request.model_copy(update={"unmet_requirements": packages})
        capabilities = self.backend.capabilities()
        decision = decide(request, policy, capabilities, self._ceilings)
        run_id = secrets.token_hex(8)
        digest = hashlib.sha256(experiment.code.encode("utf-8", "surrogatepass")).hexdigest()
        sequence = self._record_decision(
            decision, request, capabilities, execution=run_id, sprint=sprint, code_sha256=digest
        )
        limits = table(decision, request.limits.given(), {}, capabilities.isolation)
        environment = policy.environment
        return Run(run_id, sprint, experiment, environment, decision, capabilities, packages, sequence, limits)

    def _packages(self, experiment: Experiment, policy: Policy) -> tuple[str, ...]:
        """What is required and not held; and what is imported and not held, as far as the policy fetches such things.

        An import is only a guess at a distribution, so one that may not be fetched denies nothing.
        """
        required = unmet(experiment.requirements)
        terms = terms_here(policy, self._ceilings).dependencies
        guessed = unmet_imports(experiment.imports, experiment.requirements)
        wanted = guessed if terms.mode == "any" else [name for name in guessed if name in terms.names]
        return (*required, *wanted)

    def _prepare(self, run: Run) -> None:
        """Finds or makes the image, and fetches the packages. Raises SandboxUnavailable, PackagesUnavailable."""
        run.image = self.backend.prepare(self._progress)
        if not run.packages:
            return
        run.wheels = fetch(run.packages, run.decision.dependencies, self._cache, self._progress)
        self._note(
            run, "dependencies", required=list(run.packages), wheels=list(run.wheels.lock), bytes=run.wheels.bytes
        )
        memory = run.decision.limits.memory
        if run.wheels.unpacked_bytes + run.wheels.bytes > memory // 2:
            size = run.wheels.unpacked_bytes >> 20
            raise PackagesUnavailable(f"the packages take {size} MiB in memory, more than half of its limit")

    def _note(self, run: Run, event: str, **fields: Any) -> int:
        """A record of this run's in the audit log."""
        return self._audit.append(event, execution=run.id, sprint=run.sprint, **fields)

    def _record_decision(
        self, decision: Decision, request: Request, capabilities: Capabilities, **about: str | None
    ) -> int:
        return self._audit.append(
            "decision",
            allow=decision.allow,
            policy={"name": decision.policy, "sha256": decision.policy_sha256},
            requested=request.limits.model_dump(mode="json", exclude_none=True),
            effective=decision.limits.model_dump(mode="json"),
            isolation=decision.isolation,
            network=decision.network.model_dump(mode="json"),
            dependencies=decision.dependencies.model_dump(mode="json"),
            watched=decision.watched,
            rules=[rule.model_dump(mode="json") for rule in decision.rules],
            backend=capabilities.backend,
            runtime=capabilities.runtime,
            **about,
        )

    def _in_container(self, run: Run, sink: Sink) -> None:
        assert run.image is not None
        lifetime = run.decision.limits.wall + 2 * START_GRACE + 2 * COLLECT_GRACE
        spec = ContainerSpec(
            run.id,
            run.decision.limits,
            Owner.this_process(lifetime),
            run.image,
            run.capabilities.isolation,
            frozenset(run.decision.watched),
            run.wheels.bytes,
            run.wheels.unpacked_bytes,
        )
        began = time.monotonic()
        container = self.backend.create(spec)
        try:
            channel = Channel(container.start())
            try:
                self._talk(run, container, channel, sink, began)
            finally:
                self._read_end(run, container)
                channel.close()
        finally:
            self._timed(run, "destroy_s", container.destroy)

    def _talk(self, run: Run, container: Container, channel: Channel, sink: Sink, began: float) -> None:
        egress = None
        if hosts := run.decision.network.hosts:
            egress = Egress(channel, hosts, lambda event, **about: self._note(run, event, **about), self._resolve)
        talk = Conversation(channel, run.decision.limits, sink, egress)
        run.report = talk.report
        try:
            self._start(run, container, talk, began)
            self._listen(run, container, talk, egress)
        except ExecutorError as error:
            said = channel.diagnosis.decode("utf-8", "replace").strip().splitlines()
            run.failure = f"{error} ({said[-1][-300:]})" if said else str(error)
        finally:
            talk.abandon_artifact()
            if egress is not None:
                egress.close()

    def _start(self, run: Run, container: Container, talk: Conversation, began: float) -> None:
        job = job_of(run.experiment, run.decision, run.environment)
        files = library(network=bool(run.decision.network.hosts))
        greeting = talk.hello(opening(job, run.experiment.code, files, run.wheels.files))
        self._inspect(run, container, greeting)
        talk.go()
        run.seconds["start_s"] = time.monotonic() - began

    def _inspect(self, run: Run, container: Container, greeting: dict[str, Any]) -> None:
        """Compares the live container with the decision. Raises InfrastructureError, and then nothing runs in it."""
        isolation = run.capabilities.isolation
        posture = posture_of(container, greeting, isolation)
        run.limits = table(run.decision, _requested(run), posture.limits, isolation)
        self._note(
            run,
            "start",
            container=container.id,
            image=run.image.model_dump() if run.image else None,
            observed=posture.limits,
            posture=posture.summary,
            deviations=posture.deviations,
            python=str(greeting.get("python"))[:40],
        )
        if posture.deviations:
            raise InfrastructureError(f"the container is not as decided: {'; '.join(posture.deviations[:5])}")
        check(run.limits, posture.limits, run.decision.watched, isolation)

    def _listen(self, run: Run, container: Container, talk: Conversation, egress: Egress | None) -> None:
        group = container.group()
        pid = container.pid()
        watched = run.decision.watched if run.capabilities.isolation == "kernel" else {}
        watch = Watchdog(pid, run.decision.limits, watched) if pid is not None and watched else None
        sampled = 0.0

        def tick(seconds: float) -> None:
            nonlocal sampled
            if egress is not None and egress.failed is not None:
                raise InfrastructureError(egress.failed)
            if watch is not None and (reason := watch.look()) is not None:
                talk.stop(reason)
            if group is not None and seconds >= sampled and len(run.samples) < _MAX_SAMPLES:
                run.samples.append({"t": round(seconds, 3), **group.sample()})
                run.oom = run.oom or group.oom_kills() > 0
                sampled = seconds + 0.9 * TICK

        every = INTERVAL if watch is not None else TICK
        try:
            talk.listen(tick, every)
        except KeyboardInterrupt:
            talk.stop("cancelled")
            talk.listen(tick, every)

    def _read_end(self, run: Run, container: Container) -> None:
        """Reads the control group while it is still there."""
        group = container.group()
        if group is not None:
            usage = group.usage()
            peak = max((int(sample.get("pids", 0)) for sample in run.samples), default=None)
            run.usage = usage.model_copy(update={"peak_pids": usage.peak_pids or peak, "samples": run.samples})
            run.oom = run.oom or group.oom_kills() > 0
            run.pids_refused = group.pids_refused()
        run.oom = run.oom or container.oom_killed()

    def _timed(self, run: Run, name: str, work: Callable[[], _T]) -> _T:
        began = time.monotonic()
        try:
            return work()
        finally:
            run.seconds[name] = time.monotonic() - began

    def _close(self, run: Run, outcome: Outcome, message: str) -> Execution:
        """The last audit record and the execution's own."""
        report = run.report
        for hit in limits_hit(run):
            effective = getattr(run.decision.limits, hit)
            self._note(run, "limit", limit=hit, effective=effective, outcome=outcome.value)
        last = self._note(
            run,
            "end",
            outcome=outcome.value,
            message=message[:500],
            returncode=report.returncode,
            signal=report.signal,
            usage=run.usage.model_dump(exclude={"samples", "gpus"}),
            output_bytes={"stdout": report.out.total, "stderr": report.err.total},
            artifacts=len(report.artifacts),
        )
        return execution_of(run, outcome, message, AuditRef(first=run.first_record, last=last))


def _no_gpus(decision: Decision, capabilities: Capabilities) -> str:
    return f"asked for {decision.limits.gpus} GPU(s): {capabilities.gpus_why}"


def _requested(run: Run) -> dict[str, float]:
    return {name: limit.requested for name, limit in run.limits.items() if limit.requested is not None}
