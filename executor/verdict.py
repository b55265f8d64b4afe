"""From what was seen of a run to its outcome: a pure function, so that every case can be tested."""

import signal

from executor.conversation import Report
from executor.experiment import Outcome
from policies.model import Limits
from policies.units import format_bytes, format_seconds


def judge(report: Report, oom: bool, out_of_pids: bool, failure: str | None, limits: Limits) -> tuple[Outcome, str]:
    """The outcome and one line for people.

    `oom`: the kernel or the engine recorded that memory ran out in this container. `out_of_pids`: it was refused
    processes, which gVisor does not survive. `failure`: what broke that is not the experiment's. An exit status of
    137 is the experiment's own word and proves nothing.
    """
    if failure is not None and out_of_pids and not oom:
        return Outcome.FAILED, f"ended at its limit of {limits.pids} processes"
    if failure is not None and not oom:
        return Outcome.INFRASTRUCTURE, failure
    if report.ended == "cancelled":
        return Outcome.CANCELLED, report.problem or "interrupted"
    if report.ended == "timeout":
        return Outcome.TIMEOUT, f"ended at the wall-clock limit of {format_seconds(limits.wall)}"
    if report.ended == "output_limit":
        return Outcome.OUTPUT_LIMIT, f"ended at the output limit of {format_bytes(limits.output)}"
    if report.ended == "metrics_limit":
        return Outcome.OUTPUT_LIMIT, f"ended at the metrics limit of {format_bytes(limits.metrics)}"
    if report.ended == "watched_memory":
        return Outcome.OOM, f"ended by the host's watch at the memory limit of {format_bytes(limits.memory)}"
    if report.ended == "host_memory":
        return (
            Outcome.OOM,
            "ended by the host's watch: the machine had next to no memory left, and runs with GPUs end first",
        )
    if report.ended == "watched_pids":
        return Outcome.FAILED, f"ended by the host's watch at its limit of {limits.pids} processes"
    if report.ended == "gpu_memory":
        return Outcome.GPU_MEMORY, f"ended by the host's watch at {format_bytes(limits.gpu_memory)} of a GPU's memory"
    if report.ended == "exited" and report.returncode == 0:
        return Outcome.COMPLETED, "completed"
    if oom:
        return Outcome.OOM, f"ran out of memory at the limit of {format_bytes(limits.memory)}"
    if report.ended == "exited" and report.signal is not None:
        return Outcome.FAILED, f"ended by signal {report.signal} ({_signal_name(report.signal)})"
    if report.ended == "exited":
        return Outcome.FAILED, f"exited with status {report.returncode}"
    return Outcome.INFRASTRUCTURE, report.problem or "the container ended before its experiment did"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
