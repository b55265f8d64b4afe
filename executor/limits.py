"""A limit's way from the decision to the proof: what was asked, what was set, who holds it, what was read back."""

from collections.abc import Mapping, Sequence

from executor.backends.base import GVISOR_TASKS
from executor.errors import InfrastructureError
from executor.experiment import Limit
from executor.gpus.devices import Device
from policies.decision import Decision
from policies.model import Isolation

# Who holds each limit. The first group is read back from the live container before the experiment starts.
_BY_KERNEL = {
    "cpus": "cgroup cpu quota",
    "memory": "cgroup memory, swap 0",
    "pids": "cgroup pids",
    "workspace": "tmpfs size",
    "tmp": "tmpfs size",
    "shm": "tmpfs size",
    "files": "tmpfs inodes",
    "open_files": "RLIMIT_NOFILE",
    "network": "network namespace",
}
_BY_US = {
    "wall": "host clock, and PID 1's",
    "output": "PID 1 and the host's reader",
    "metrics": "PID 1 and the host's reader",
    "artifacts": "PID 1 and the host's reader",
    "artifact_files": "PID 1 and the host's reader",
    "gpus": "device nodes and their cgroup rules, looked at from inside",
    "gpu_memory": "the host's watch (NVML)",
}
NO_GPU = "no device is passed in"
SLICE, DMEM = "MIG, the hardware", "cgroup dmem"
WATCHED = {"memory": "the host's watch (best effort)", "pids": "the host's watch (best effort)"}
_NOT_HELD = "nobody (best effort)"
_PAGE = 4096
# The kernel rounds sizes to pages, and a CPU quota to microseconds of its period.
_TOLERANCE = {"memory": _PAGE, "workspace": _PAGE, "tmp": _PAGE, "shm": _PAGE, "cpus": 0.001}


def table(
    decision: Decision,
    requested: Mapping[str, float],
    observed: Mapping[str, float],
    isolation: Isolation = "kernel",
    devices: Sequence[Device] = (),
) -> dict[str, Limit]:
    """Every limit of the decision, for the record. `isolation` is what the backend gives, `devices` what was lent."""
    holders = _BY_KERNEL | _BY_US
    if decision.limits.gpus == 0:
        holders |= {"gpus": NO_GPU, "gpu_memory": NO_GPU}
    elif observed.get("gpu_memory", float("inf")) <= decision.limits.gpu_memory:
        holders["gpu_memory"] = DMEM
    elif devices and all(d.parent is not None and d.memory <= decision.limits.gpu_memory for d in devices):
        holders["gpu_memory"] = SLICE
    if isolation == "gvisor":
        holders["pids"] = f"cgroup pids, {GVISOR_TASKS} more for gVisor itself"
        holders |= dict.fromkeys(("workspace", "tmp", "shm", "open_files", "network"), "gVisor's kernel")
    holders |= {name: WATCHED.get(name, _NOT_HELD) for name in decision.watched}
    return {
        name: Limit(
            requested=requested.get(name),
            effective=0.0 if name == "network" else getattr(decision.limits, name),
            enforced_by=holder,
            observed=observed.get(name),
        )
        for name, holder in holders.items()
    }


def check(
    limits: Mapping[str, Limit],
    observed: Mapping[str, float],
    watched: Mapping[str, str],
    isolation: Isolation = "kernel",
) -> None:
    """Raises InfrastructureError unless the kernel holds what was decided, to the page.

    What is `watched` under best effort is not expected to be held.
    """
    spare = {**_TOLERANCE, "pids": GVISOR_TASKS} if isolation == "gvisor" else _TOLERANCE
    for name in _BY_KERNEL.keys() - watched.keys():
        limit = limits[name]
        if limit.observed is None:
            raise InfrastructureError(f"the limit {name} could not be read back from the container")
        if limit.observed > limit.effective + spare.get(name, 0.0):
            raise InfrastructureError(
                f"the container was given {name} {limit.observed:g} where {limit.effective:g} was decided"
            )
    if "memory" not in watched and observed.get("swap", 1.0) > 0:
        raise InfrastructureError("the container may swap, although swap 0 was decided")
