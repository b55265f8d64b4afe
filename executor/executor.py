"""One experiment in one throwaway container: decide, queue, prepare, lend, create, hold the session, destroy, record."""

import contextlib
import hashlib
import itertools
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from executor.backends.base import Backend, ContainerSpec, Passed, Progress
from executor.channel import Channel
from executor.conversation import COLLECT_GRACE, START_GRACE
from executor.dependencies import fetch
from executor.errors import (
    ExecutorError,
    InfrastructureError,
    PackagesUnavailable,
    RequestDenied,
    SandboxUnavailable,
)
from executor.experiment import AuditRef, Execution, Experiment, ImageRef, Outcome, Sink
from executor.gpus.account import gpu_seconds
from executor.gpus.choice import Wanted, fitting
from executor.gpus.lending import Gpus, Loan
from executor.job import ahead_of, gpu_environment, job_of
from executor.leases import NotWanted, Unwanted
from executor.limits import table
from executor.ownership import Owner
from executor.places import Places
from executor.run import Run, execution_of, limits_hit
from executor.session import Session
from executor.verdict import judge
from executor.warm import Kind, Supply, Warm
from policies.audit import AuditLog
from policies.decision import Capabilities, Decision, Request, decide
from policies.merge import terms_here
from policies.model import Ceiling, Isolation, Policy
from policies.state import cache_dir
from sandbox_images.lock import unmet, unmet_imports

if TYPE_CHECKING:
    from executor.egress import Resolve

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
        resolve: "Resolve | None" = None,
        gpus: Gpus | None = None,
        pool: Supply | None = None,
        places: Places | None = None,
    ) -> None:
        """pool: where runs find their containers ready, and after them others of their kind; None: each makes its own.
        places: the queue for the machine's cores and memory; None: nobody else runs here."""
        self.backend = backend
        self._pool = pool
        self._places = places
        self._image: ImageRef | None = None
        self._gpus = gpus or Gpus()
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
        decision = self._judge(request, policy, capabilities)
        if not decision.allow:
            self._record_decision(decision, request, capabilities, execution=None, sprint=None, code_sha256=None)
            raise RequestDenied(decision.reason)
        self._check_gpus(decision, request)
        self._image = self.backend.prepare(self._progress)
        return decision

    def warm_up(self, experiment: Experiment, policy: Policy, request: Request) -> Decision:
        """`preflight`, and from now on containers wait that such an experiment would need, where there is a pool."""
        decision = self.preflight(policy, request)
        kind = self._kind(experiment, policy, decision, self.backend.capabilities())
        if self._pool is not None and kind is not None and not self._packages(experiment, policy):
            self._pool.keep(kind, self.backend, policy.warm, _lifetime(decision))
        return decision

    def side_by_side(self, decision: Decision, request: Request) -> int | None:
        """How many runs on these terms this machine has GPUs for at a time; None where they need none, or share them."""
        if decision.limits.gpus == 0 or decision.gpu.sharing == "shared":
            return None
        return len(fitting(self._gpus.machine, self._wanted(decision, request))) // decision.limits.gpus

    def run(
        self,
        experiment: Experiment,
        policy: Policy,
        request: Request,
        sink: Sink,
        sprint: str | None = None,
        unwanted: Unwanted | None = None,
    ) -> Execution:
        """Runs `experiment` and returns its record, whatever came of it.

        Results reach `sink` as they come. unwanted: asked again and again; a reason ends the run as cancelled, wherever it is.
        Raises SandboxUnavailable when nothing could be started, AuditError when the log cannot be written, and ValueError
        for requirements that are none.
        """
        run = self._decide(experiment, policy, request, sprint)
        run.unwanted = unwanted
        with contextlib.ExitStack() as held:
            if not run.packages and run.decision.limits.gpus == 0:  # what there is to prepare takes no time
                try:
                    held.enter_context(self._placed(run))
                except (NotWanted, ExecutorError, KeyboardInterrupt) as error:
                    run.refused = error
            self._begin(run)
            return self._through(run, sink)

    def _decide(self, experiment: Experiment, policy: Policy, request: Request, sprint: str | None) -> Run:
        packages = self._packages(experiment, policy)
        request = request.model_copy(update={"unmet_requirements": packages})
        capabilities = self.backend.capabilities()
        decision = self._judge(request, policy, capabilities)
        limits = table(decision, request.limits.given(), {}, capabilities.isolation)
        run_id = secrets.token_hex(8)
        return Run(run_id, sprint, experiment, policy, request, decision, capabilities, packages, limits)

    @contextmanager
    def _placed(self, run: Run) -> Iterator[None]:
        """Holds a place among the machine's runs. Raises NotWanted, SandboxUnavailable, InfrastructureError."""
        if self._places is None or not run.decision.allow or run.placed:
            yield
            return
        began, terms = time.monotonic(), run.decision.limits
        place = self._places.take(run.id, terms.cpus, terms.memory, self._progress, run.unwanted, beside=terms.gpus > 0)
        try:
            run.placed = True
            run.seconds["queue_s"] = run.seconds.get("queue_s", 0.0) + time.monotonic() - began
            yield
        finally:
            place.release()

    def _begin(self, run: Run) -> None:
        """Takes a container that waits, where there is one, and records the decision."""
        if not run.packages and run.refused is None:
            run.kind = self._kind(run.experiment, run.policy, run.decision, run.capabilities)
        if self._pool is not None and run.kind is not None:
            run.warm = self._pool.take(run.kind, self.backend, _lifetime(run.decision))
        run.id = run.warm.id if run.warm else run.id
        digest = hashlib.sha256(run.experiment.code.encode("utf-8", "surrogatepass")).hexdigest()
        try:
            run.first_record = self._record_decision(
                run.decision, run.request, run.capabilities, execution=run.id, sprint=run.sprint, code_sha256=digest
            )
        except BaseException:
            if run.warm is not None:
                run.warm.destroy()
            raise

    def _through(self, run: Run, sink: Sink) -> Execution:
        """Everything after the decision: to the end of the run and of its container."""
        if not run.decision.allow:
            return self._close(run, Outcome.DENIED, run.decision.reason)
        try:
            if run.refused is not None:
                raise run.refused
            self._check_gpus(run.decision, run.request)
            self._timed(run, "prepare_s", lambda: self._prepare(run))
            with self._lent(run), self._placed(run):
                self._in_container(run, sink)
        except NotWanted as why:
            return self._close(run, Outcome.CANCELLED, str(why))
        except PackagesUnavailable as error:
            return self._close(run, Outcome.FAILED, str(error))
        except RequestDenied as error:
            return self._close(run, Outcome.DENIED, str(error))
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
        finally:
            if run.warm is not None:
                run.warm.destroy()
        if run.report.ended == "container_gone" and self._was_killed(run):
            run.report.ended, run.report.problem = "cancelled", "ended from outside, by labsandbox kill"
            run.failure = None
        out_of_pids = run.capabilities.isolation == "gvisor" and run.pids_refused > 0
        return self._close(run, *judge(run.report, run.oom, out_of_pids, run.failure, run.decision.limits))

    def _was_killed(self, run: Run) -> bool:
        """Whether somebody put on record that they were going to end this run."""
        since = itertools.islice(self._audit.lines(), run.first_record, None)
        records = (json.loads(line) for line in since if run.id.encode() in line)
        return any(record["event"] == "kill" and record["execution"] == run.id for record in records)

    def _kind(
        self, experiment: Experiment, policy: Policy, decision: Decision, capabilities: Capabilities
    ) -> Kind | None:
        """What a container made ahead for such an experiment is made from; None where none may be."""
        if self._pool is None or not self._pool.there() or not decision.allow or not _may_wait(decision, policy):
            return None
        if self._image is None:
            with contextlib.suppress(SandboxUnavailable):  # the run will meet the same, and say so
                self._image = self.backend.prepare(self._progress)
        if self._image is None:
            return None
        modules = [name for name in policy.warm.preload if name in experiment.imports]
        told = gpu_environment((), decision.limits.gpu_memory, Passed())
        nothing = Experiment(code="", seed=experiment.seed)
        return Kind(
            _spec("", self._image, decision, capabilities.isolation),
            self.backend.recipe(),
            bool(decision.network.hosts),
            ahead_of(job_of(nothing, decision, policy.environment, told), modules),
        )

    def _judge(
        self, request: Request, policy: Policy, capabilities: Capabilities, before: int | None = None
    ) -> Decision:
        """The decision. before: the audit record from which on the user's leases of GPUs do not count against it."""
        used = 0.0
        if any(ceiling.gpu and ceiling.gpu.time_per_day is not None for ceiling in self._ceilings):
            used = gpu_seconds(self._audit.lines(), os.getuid(), before)
        return decide(request, policy, capabilities, self._ceilings, used)

    def _wanted(self, decision: Decision, request: Request) -> Wanted:
        """What is wanted of GPUs. Raises SandboxUnavailable when it can never be given here."""
        gvisor = self.backend.capabilities().isolation == "gvisor"
        self._gpus.check(Wanted.of(decision, request, gvisor))
        machine = self._gpus.machine
        problems = self.backend.gpu_problems(machine)
        wanted = Wanted.of(decision, request, gvisor, problems)
        if problems and len(fitting(machine, wanted)) < wanted.count:
            raise SandboxUnavailable(f"asked for {wanted.count} GPU(s): {next(iter(problems.values()))}")
        return wanted

    def _check_gpus(self, decision: Decision, request: Request) -> None:
        """Raises SandboxUnavailable when GPUs were asked for and can never be given here."""
        if decision.limits.gpus > 0:
            self._wanted(decision, request)

    @contextmanager
    def _lent(self, run: Run) -> Iterator[None]:
        """Holds the GPUs that were asked for. Raises SandboxUnavailable when none became free in time, RequestDenied when
        the user's other runs have used up the box's time meanwhile."""
        if run.decision.limits.gpus == 0:
            yield
            return
        loan: Loan | None = None
        try:
            loan = self._timed(run, "queue_s", lambda: self._lend(run))
            lease = self._note(
                run,
                "lease",
                gpus=[device.uuid for device in loan.devices],
                shared=loan.shared,
                waited_s=round(run.seconds["queue_s"], 3),
                at_most_s=run.decision.limits.wall,
            )
            # Counted once more, now that it is its turn: of runs that were decided side by side, the later see the earlier.
            now = self._judge(run.request, run.policy, run.capabilities, lease)
            if not now.allow:
                raise RequestDenied(now.reason)
            run.loan = loan
            yield
        finally:
            if loan is not None:
                run.gpu_seconds = loan.seconds()
                if not self._gpus.give_back(loan):
                    self._progress("the container is still on its GPUs, which stay lent until this process ends")

    def _lend(self, run: Run) -> Loan:
        wanted = self._wanted(run.decision, run.request)
        per_user, wait = run.decision.gpus_per_user, run.request.gpu_wait
        return self._gpus.lend(run.id, wanted, per_user, wait, self._progress, run.unwanted)

    def _packages(self, experiment: Experiment, policy: Policy) -> tuple[str, ...]:
        """What is required and not held; and what is imported and not held, as far as the policy fetches such things.

        An import is only a guess at a distribution, so one that may not be fetched denies nothing.
        """
        held = self.backend.flavour
        required = unmet(experiment.requirements, held)
        terms = terms_here(policy, self._ceilings).dependencies
        guessed = unmet_imports(experiment.imports, experiment.requirements, held)
        wanted = guessed if terms.mode == "any" else [name for name in guessed if name in terms.names]
        return (*required, *wanted)

    def _prepare(self, run: Run) -> None:
        """Finds or makes the image, and fetches the packages. Raises SandboxUnavailable, PackagesUnavailable."""
        run.image = self._image = self.backend.prepare(self._progress)
        if not run.packages:
            return
        terms = run.decision.dependencies
        run.wheels = fetch(run.packages, terms, self._cache, self._progress, self.backend.flavour)
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

    def _spec(self, run: Run, image: ImageRef) -> ContainerSpec:
        terms = _spec(run.id, image, run.decision, run.capabilities.isolation, _lifetime(run.decision))
        return replace(
            terms,
            wheels_bytes=run.wheels.bytes,
            packages_bytes=run.wheels.unpacked_bytes,
            gpus=run.loan.devices if run.loan else (),
            driver=self._gpus.machine.driver if run.loan else "",
        )

    def _in_container(self, run: Run, sink: Sink) -> None:
        """In the container that waited for it, or in one of its own: also where the first died before PID 1 said that the code
        runs, and there is nothing outside that it could have reached."""
        if (warm := self._taken(run)) is not None:
            self._hold(run, sink, warm)
            if run.report.started_at is not None or run.decision.network.hosts:
                return
            run.failure, run.oom = None, False
        self._hold(run, sink, None)

    def _hold(self, run: Run, sink: Sink, warm: Warm | None) -> None:
        assert run.image is not None
        began = time.monotonic()
        container = warm.container if warm else self.backend.create(self._spec(run, run.image))
        try:
            if run.loan is not None:
                # Where the queue is busy, others take its processes for strangers.
                with contextlib.suppress(InfrastructureError):
                    run.loan.lease.used_by(container.id)
                self._progress(f"{', '.join(run.loan.names())}, by {container.passed.way}")
            channel = Channel(warm.connection if warm else container.start())
            session = Session(run, container, channel, self._gpus, partial(self._note, run))
            try:
                if warm and (group := container.group()) is not None:
                    group.full_weight()
                session.hold(sink, warm.greeting if warm else None, lambda: self._started(run, began), self._resolve)
            finally:
                session.read_end()
                channel.close()
        finally:
            self._timed(run, "destroy_s", container.destroy)
            if warm is not None:
                warm.release()

    def _taken(self, run: Run) -> Warm | None:
        """The container that waited for this run, unless the image has changed meanwhile."""
        warm, run.warm = run.warm, None
        if warm is not None and warm.image != run.image:
            warm.destroy()
            return None
        return warm

    def _started(self, run: Run, began: float) -> None:
        """It runs: from now on another container of its kind is made, if such are kept."""
        run.seconds["start_s"] = time.monotonic() - began
        if self._pool is not None and run.kind is not None:
            self._pool.keep(run.kind, self.backend, run.policy.warm, _lifetime(run.decision))

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
            **(_gpu_record(run) if run.loan else {}),
            output_bytes={"stdout": report.out.total, "stderr": report.err.total},
            artifacts=len(report.artifacts),
        )
        return execution_of(run, outcome, message, AuditRef(first=run.first_record, last=last))


def _spec(
    run_id: str, image: ImageRef, decision: Decision, isolation: Isolation, lifetime: float = 0.0
) -> ContainerSpec:
    """A container under the decided terms, without packages and devices."""
    return ContainerSpec(
        run_id, decision.limits, Owner.this_process(lifetime), image, isolation, frozenset(decision.watched)
    )


def _may_wait(decision: Decision, policy: Policy) -> bool:
    """Whether containers under these terms are made ahead: a device is lent to a run, not to what waits for one."""
    return policy.warm.count > 0 and decision.limits.gpus == 0


def _lifetime(decision: Decision) -> float:
    """Seconds after which a container is nobody's any more."""
    return decision.limits.wall + 2 * START_GRACE + 2 * COLLECT_GRACE


def _gpu_record(run: Run) -> dict[str, Any]:
    energy = [usage.energy_j for usage in run.gpu_usage if usage.energy_j is not None]
    return {"gpu_seconds": round(run.gpu_seconds, 3), "gpu_energy_j": round(sum(energy), 3) if energy else None}
