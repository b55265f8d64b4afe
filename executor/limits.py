"""A limit's way from the decision to the proof: what was asked, what was set, who holds it, what was read back."""

from collections.abc import Mapping

from executor.backends.base import Container
from executor.errors import InfrastructureError
from executor.experiment import Limit
from executor.observe import MOUNTS, Cgroup, process_limits
from policies.decision import Decision

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
    "gpus": "device cgroup",
}
_PAGE = 4096
# The kernel rounds sizes to pages, and a CPU quota to microseconds of its period.
_TOLERANCE = {"memory": _PAGE, "workspace": _PAGE, "tmp": _PAGE, "shm": _PAGE, "cpus": 0.001}


def read_back(container: Container) -> dict[str, float]:
    """What the live container is held to, as read on this host, or from the engine's record if it runs elsewhere."""
    pid = container.pid()
    group = Cgroup.of(pid, container.id) if pid is not None else None
    found = container.recorded() if pid is None or group is None else group.limits() | process_limits(pid)
    inodes = [value for name, value in found.items() if name.startswith("files:")]
    whole = {"files": max(inodes)} if len(inodes) == len(MOUNTS) else {}
    return {name: value for name, value in found.items() if ":" not in name} | whole


def table(decision: Decision, requested: Mapping[str, float], observed: Mapping[str, float]) -> dict[str, Limit]:
    """Every limit of the decision, for the record."""
    found = {}
    for name in (*_BY_KERNEL, *_BY_US):
        found[name] = Limit(
            requested=requested.get(name),
            effective=0.0 if name == "network" else getattr(decision.limits, name),
            enforced_by=_BY_KERNEL.get(name) or _BY_US[name],
            observed=observed.get(name),
        )
    return found


def check(limits: Mapping[str, Limit], observed: Mapping[str, float]) -> None:
    """Raises InfrastructureError unless the kernel holds what was decided, to the page."""
    for name in _BY_KERNEL:
        limit = limits[name]
        if limit.observed is None:
            raise InfrastructureError(f"the limit {name} could not be read back from the container")
        if limit.observed > limit.effective + _TOLERANCE.get(name, 0.0):
            raise InfrastructureError(
                f"the container was given {name} {limit.observed:g} where {limit.effective:g} was decided"
            )
    if observed.get("swap", 0.0) > 0:
        raise InfrastructureError("the container may swap, although swap 0 was decided")
