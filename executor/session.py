"""One run in its container, from PID 1's greeting to the last look at the control group: inspect, start, listen, read."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from executor.backends.base import Container
from executor.channel import Channel, assignment, files, opening
from executor.conversation import TICK, Conversation, greet
from executor.errors import ExecutorError, InfrastructureError
from executor.experiment import Sink
from executor.gpus.lending import Gpus
from executor.job import gpu_environment, job_of, library, study_file
from executor.limits import check, table
from executor.posture import posture_of, torch_problem
from executor.run import Run

if TYPE_CHECKING:
    from executor.egress import Egress, Resolve

_MAX_SAMPLES = 600
_ASKING = 0.1
"""Seconds between two questions whether a run is still wanted."""


class Note(Protocol):
    """Writes a record of the run's into the audit log."""

    def __call__(self, event: str, **fields: Any) -> int: ...


class Session:
    """What goes on between a run and its container. What comes of it is kept in the run."""

    def __init__(self, run: Run, container: Container, channel: Channel, gpus: Gpus, note: Note) -> None:
        self._run = run
        self._container = container
        self._channel = channel
        self._gpus = gpus
        self._note = note
        self._devices = run.loan.devices if run.loan else ()

    def hold(
        self,
        sink: Sink,
        greeting: dict[str, Any] | None,
        started: Callable[[], None],
        resolve: "Resolve | None" = None,
    ) -> None:
        """Runs the experiment to its end, or to the run's failure.

        greeting: PID 1's, where it has greeted already. started: is told when the experiment runs.
        """
        run, channel, egress = self._run, self._channel, None
        if hosts := run.decision.network.hosts:
            from executor.egress import Egress  # with asyncio and h11, which a run without a network does not need

            egress = Egress(channel, hosts, self._note, resolve)
        talk = Conversation(channel, run.decision.limits, sink, egress)
        run.report = talk.report
        try:
            self._start(talk, greeting or greet(channel, opening(library(bool(hosts)))))
            started()
            self._listen(talk, egress)
        except ExecutorError as error:
            said = channel.diagnosis.decode("utf-8", "replace").strip().splitlines()
            run.failure = f"{error} ({said[-1][-300:]})" if said else str(error)
        finally:
            talk.abandon_artifact()
            if egress is not None:
                egress.close()

    def read_end(self) -> None:
        """Reads the control group while it is still there."""
        run, group = self._run, self._container.group()
        if group is not None:
            usage = group.usage()
            peak = max((int(sample.get("pids", 0)) for sample in run.samples), default=None)
            cpu = None if usage.cpu_s is None else usage.cpu_s - run.cpu_before
            run.usage = usage.model_copy(
                update={"cpu_s": cpu, "peak_pids": usage.peak_pids or peak, "samples": run.samples}
            )
            run.oom = run.oom or group.oom_kills() > 0
            run.pids_refused = group.pids_refused()
        run.oom = run.oom or self._container.oom_killed()

    def _start(self, talk: Conversation, greeting: dict[str, Any]) -> None:
        run = self._run
        told = gpu_environment(self._devices, run.decision.limits.gpu_memory, self._container.passed)
        job = job_of(run.experiment, run.decision, run.policy.environment, told)
        self._inspect(greeting)
        group = self._container.group()
        run.cpu_before = (group.usage().cpu_s or 0.0) if group is not None else 0.0
        talk.go((*files(study_file(run.experiment.left)), *assignment(job, run.experiment.code, run.wheels.files)))

    def _inspect(self, greeting: dict[str, Any]) -> None:
        """Compares the live container with the decision. Raises InfrastructureError, and then nothing runs in it."""
        run, container, devices = self._run, self._container, self._devices
        isolation = run.capabilities.isolation
        posture = posture_of(container, greeting, isolation, frozenset(device.uuid for device in devices))
        needs_torch = devices and "torch" in run.experiment.imports
        if needs_torch and (problem := torch_problem(greeting, self._gpus.machine.cuda)) is not None:
            posture.deviations.append(problem)
        run.limits = table(run.decision, _requested(run), posture.limits, isolation, devices)
        self._note(
            "start",
            container=container.id,
            image=run.image.model_dump() if run.image else None,
            observed=posture.limits,
            posture=posture.summary,
            deviations=posture.deviations,
            python=str(greeting.get("python"))[:40],
            **({"gpus_by": container.passed.way} if devices else {}),
        )
        if posture.deviations:
            raise InfrastructureError(f"the container is not as decided: {'; '.join(posture.deviations[:5])}")
        check(run.limits, posture.limits, run.decision.watched, isolation)

    def _listen(self, talk: Conversation, egress: "Egress | None") -> None:
        run, container = self._run, self._container
        group = container.group()
        watched = run.decision.watched if run.capabilities.isolation == "kernel" else {}
        pid = container.pid() if watched else None
        watch, often = None, TICK
        if pid is not None:
            from executor.watchdog import (  # with psutil, which a run whose limits the kernel holds does not need
                INTERVAL,
                Watchdog,
            )

            watch, often = Watchdog(pid, run.decision.limits, watched), INTERVAL
        devices = self._gpus.watch(run.loan, run.decision.limits.gpu_memory, container.id) if run.loan else None
        sampled = 0.0

        def tick(seconds: float) -> None:
            nonlocal sampled
            if egress is not None and egress.failed is not None:
                raise InfrastructureError(egress.failed)
            if run.unwanted is not None and (why := run.unwanted()) is not None:
                run.report.problem = why
                talk.stop("cancelled")
            if watch is not None and (reason := watch.look()) is not None:
                talk.stop(reason)
            if devices is not None and devices.look(seconds):
                talk.stop("gpu_memory")
            if devices is not None and devices.machine_is_short():
                talk.stop("host_memory")
            if group is not None and seconds >= sampled and len(run.samples) < _MAX_SAMPLES:
                run.samples.append({"t": round(seconds, 3), **_less(group.sample(), run.cpu_before)})
                run.oom = run.oom or group.oom_kills() > 0
                sampled = seconds + 0.9 * TICK

        every = min(
            often,
            devices.every if devices is not None else TICK,
            _ASKING if run.unwanted is not None else TICK,
        )
        try:
            talk.listen(tick, every)
        except KeyboardInterrupt:
            talk.stop("cancelled")
            talk.listen(tick, every)
        finally:
            if devices is not None:
                run.gpu_usage = devices.usage()


def _less(sample: dict[str, float], cpu: float) -> dict[str, float]:
    """A sample without the CPU seconds that were used before the run."""
    return {**sample, "cpu_s": sample["cpu_s"] - cpu} if "cpu_s" in sample else sample


def _requested(run: Run) -> dict[str, float]:
    return {name: limit.requested for name, limit in run.limits.items() if limit.requested is not None}
