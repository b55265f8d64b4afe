"""What a live container is, compared with what was decided, after it was made and before the experiment starts.

The facts are the texts of /proc/PID: read by the host where it can see the process, told by PID 1 itself where it
cannot (gVisor's own kernel, an engine elsewhere). PID 1 is ours and nothing of the experiment has run yet.
Formats: proc(5), cgroups(7).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.backends.base import KEPT_CAPABILITIES, LIBRARY_MOUNT, PACKAGES_MOUNT, Container
from policies.model import Isolation

_TEXTS = ("status", "mountinfo", "limits", "net/dev")
SIZED = {"workspace": "/workspace", "tmp": "/tmp", "shm": "/dev/shm"}
"""Limit → the tmpfs that it sizes."""
_NAMESPACES = ("pid", "net", "ipc", "uts", "mnt")
_GVISOR_NAMESPACES = (
    "net",
    "ipc",
    "uts",
    "mnt",
)  # its kernel has the processes; the sandbox itself needs no pid namespace
_CAPABILITY_BITS = {"KILL": 5, "SETGID": 6, "SETUID": 7}
_MASK = sum(1 << _CAPABILITY_BITS[name] for name in KEPT_CAPABILITIES)
_WRITABLE = {
    **dict.fromkeys([*SIZED.values(), LIBRARY_MOUNT, PACKAGES_MOUNT, "/dev"], "tmpfs"),
    "/dev/pts": "devpts",
    "/dev/mqueue": "mqueue",
    "/proc": "proc",
    "/sys/fs/cgroup": "tmpfs",  # a folder of read-only mounts, uid 0's
}
# null, zero, full, random, urandom, tty, console, ptmx, pts; and tun, which engines list though no container has its node.
_NODES = ("1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:1", "5:2", "136:*", "10:200")
_HIDDEN = ("/proc/driver/nvidia", "/proc/driver/nvidia/params")
_SOCKETS = ("/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket")
_MPS = "/tmp/nvidia-mps"
_GVISORS_NODES = frozenset({"10:200", "10:229"})  # tun and fuse, of its own kernel
_RENUMBERED = frozenset({"/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"})  # gVisor gives these a major number of its own
_DEVICE_RULES = frozenset({"c *:* m", "b *:* m"} | {f"c {node} rwm" for node in _NODES})


@dataclass(frozen=True)
class Facts:
    """The texts of /proc/PID that say what a process may do."""

    status: str
    mountinfo: str
    limits: str
    net_dev: str
    seen_by: str
    """`host` or `container`."""

    @classmethod
    def on_host(cls, pid: int) -> "Facts | None":
        """Read by the host; None when the process is gone."""
        try:
            status, mountinfo, limits, net_dev = ((Path(f"/proc/{pid}") / name).read_text() for name in _TEXTS)
        except OSError:
            return None
        return cls(status, mountinfo, limits, net_dev, seen_by="host")

    @classmethod
    def told(cls, greeting: Mapping[str, Any]) -> "Facts":
        """As PID 1 told them. What it left out is empty, and found to deviate."""
        status, mountinfo, limits, net_dev = (str(greeting.get(name) or "") for name in _TEXTS)
        # gVisor's files do not have these two.
        if "NoNewPrivs" not in status:
            status += f"\nNoNewPrivs:\t{greeting.get('no_new_privs')}\n"
        if not limits:
            limits = "Max open files {0} {0} files".format(greeting.get("open_files"))
        return cls(status, mountinfo, limits, net_dev, seen_by="container")

    def field(self, name: str) -> str:
        """A field of the status file, or ""."""
        for line in self.status.splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return " ".join(value.split())
        return ""


@dataclass(frozen=True)
class Mount:
    """A line of mountinfo."""

    point: str
    root: str
    options: frozenset[str]
    kind: str
    super_options: str


@dataclass(frozen=True)
class Posture:
    """What was found."""

    limits: dict[str, float]
    """Limit → what the kernel holds; `swap` in bytes and `network` as a number of interfaces among them."""
    summary: dict[str, Any]
    """For the audit log."""
    deviations: list[str]
    """What is not as decided, one line each."""


def posture_of(
    container: Container, greeting: Mapping[str, Any], isolation: Isolation, wanted: frozenset[str] = frozenset()
) -> Posture:
    """Inspects a started container. `isolation` is what the backend claims to give, `wanted` the UUIDs of lent devices."""
    pid = container.pid()
    group = container.group()
    # PID 1 is not dumpable, so only root can look into it; others take its word, as under gVisor.
    here = pid is not None and group is not None and os.geteuid() == 0
    facts = Facts.on_host(pid) if pid is not None and here and isolation == "kernel" else None
    facts = facts or Facts.told(greeting)
    held = group.limits() if group is not None else dict(container.recorded())
    wrong = _deviations(facts, Facts.told(greeting).field("Uid"), isolation, bool(container.passed.nodes))
    if here and pid is not None:
        wrong += _foreign(pid, isolation)
    if group is not None and isolation == "kernel":
        wrong += [f"device rule {rule!r}" for rule in group.devices() if not _expected(rule, container.passed.nodes)]
    summary = {
        "isolation": isolation,
        "seen_by": facts.seen_by,
        "cgroup": "host" if group is not None else "engine's record",
        "uid": facts.field("Uid").split(" ")[0],
        "capabilities": facts.field("CapEff"),
        "no_new_privs": facts.field("NoNewPrivs"),
        "seccomp": facts.field("Seccomp"),
        "writable": sorted(mount.point for mount in mounts(facts) if "rw" in mount.options),
    }
    wrong += _strange_nodes(greeting, container.passed.nodes, isolation)
    seen = _visible(greeting)
    if wanted or "gpus" in greeting:
        wrong += _devices_wrong(seen, wanted, greeting)
        summary["gpus"] = sorted(seen)
        held = {**held, "gpus": float(len(wanted & seen))}
    return Posture(held | process_limits(facts), summary, wrong)


def _visible(greeting: Mapping[str, Any]) -> frozenset[str]:
    """UUIDs of the devices and slices that NVML lists inside."""
    listed = greeting.get("gpus")
    found = listed.get("nvml") if isinstance(listed, dict) else None
    return frozenset(str(uuid)[:80] for uuid in found) if isinstance(found, list) else frozenset()


def _devices_wrong(seen: frozenset[str], wanted: frozenset[str], greeting: Mapping[str, Any]) -> list[str]:
    """What of the devices inside is not as lent, for NVML and for CUDA, which name them alike but for the prefix."""
    listed = greeting.get("gpus")
    told: dict[str, Any] = listed if isinstance(listed, dict) else {}
    wrong = [f"the GPU {uuid} is visible, and was not lent" for uuid in sorted(seen - wanted)]
    why = str(told.get("nvml_problem") or "NVML does not list it")[:200]
    wrong += [f"the GPU {uuid} is not visible inside: {why}" for uuid in sorted(wanted - seen)]
    if not wanted and not wrong:
        wrong.append("NVIDIA's control device is in the container, and no GPU was lent")
    usable = told.get("cuda")
    bare = {str(uuid) for uuid in usable} if isinstance(usable, list) else set()
    if not wrong and bare != {_bare(uuid) for uuid in wanted}:
        problem = str(told.get("cuda_problem") or f"it finds {len(bare)} of {len(wanted)} devices")[:200]
        wrong.append(f"CUDA cannot use the GPUs inside: {problem}")
    return wrong


def _bare(uuid: str) -> str:
    return uuid.partition("-")[2].replace("-", "")


def _strange_nodes(greeting: Mapping[str, Any], lent: frozenset[str], isolation: Isolation) -> list[str]:
    """Device nodes that PID 1 finds below /dev and no container has, those aside that were lent."""
    told = greeting.get("nodes")
    if not isinstance(told, dict):
        return ["the device nodes could not be read"]
    gvisor = isolation == "gvisor"
    own = {*_NODES, *lent, *(_GVISORS_NODES if gvisor else ())}
    renumbered = _RENUMBERED if gvisor and lent else frozenset()
    strange = {str(node)[:20] for path, node in told.items() if path not in renumbered} - own
    return [f"the device node {node}" for node in sorted(strange) if f"{node.partition(':')[0]}:*" not in own]


def torch_problem(greeting: Mapping[str, Any], cuda: str) -> str | None:
    """Why the torch inside cannot use the devices that were lent; None where it can, or none is seen. Left to itself, much
    code would go on without them.

    cuda: the newest version that the driver takes; a torch built for another minor of it works (CUDA minor version
    compatibility).
    """
    listed = greeting.get("gpus")
    built = listed.get("torch") if isinstance(listed, dict) else None
    if not isinstance(built, str):
        return None
    if not built:
        return "the torch inside is built for CPUs only"
    newest, wants = cuda.partition(".")[0], built[:20].partition(".")[0]
    if newest.isdigit() and wants.isdigit() and int(wants) > int(newest):
        return f"the torch inside is built for CUDA {built[:20]}, and the driver takes CUDA up to {cuda}"
    return None


def _expected(rule: str, nodes: frozenset[str]) -> bool:
    """Whether every container has the rule, or it is for a node of a device that was lent."""
    kind, _, rest = rule.partition(" ")
    return rule in _DEVICE_RULES or (kind in ("c", "b") and rest.partition(" ")[0] in nodes)


def process_limits(facts: Facts) -> dict[str, float]:
    """Open files, sizes (bytes) and inodes of the writable mounts, and the number of interfaces besides loopback."""
    found: dict[str, float] = {}
    for line in facts.limits.splitlines():
        words = line.split()
        if line.startswith("Max open files") and words[4].isdigit():
            found["open_files"] = float(words[4])
    inodes = []
    for mount in mounts(facts):
        for name, point in SIZED.items():
            if mount.point == point and mount.kind == "tmpfs":
                sizes = tmpfs_limits(mount.super_options)
                found |= {name: sizes["size"]} if "size" in sizes else {}
                inodes += [sizes["nr_inodes"]] if "nr_inodes" in sizes else []
    if len(inodes) == len(SIZED):
        found["files"] = max(inodes)
    interfaces = facts.net_dev.splitlines()[2:]
    if facts.net_dev:
        found["network"] = float(sum(not line.strip().startswith("lo:") for line in interfaces))
    return found


def mounts(facts: Facts) -> list[Mount]:
    """The mounts, later ones over earlier ones."""
    found = []
    for line in facts.mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        words, rest = before.split(), after.split()
        if len(words) >= 6 and rest:
            found.append(Mount(words[4], words[3], frozenset(words[5].split(",")), rest[0], rest[-1]))
    return found


def tmpfs_limits(options: str) -> dict[str, float]:
    """`size` in bytes and `nr_inodes` from mount options such as "rw,size=1024k,nr_inodes=4k"."""
    fields = dict(option.partition("=")[::2] for option in options.split(","))
    return {
        name: float(fields[name].rstrip("k")) * (1024 if fields[name].endswith("k") else 1)
        for name in ("size", "nr_inodes")
        if fields.get(name, "").rstrip("k").isdigit()
    }


def _deviations(facts: Facts, uid: str, isolation: Isolation, devices: bool = False) -> list[str]:
    """What of user, capabilities, privileges, system calls and mounts is not as every container's must be.

    `uid`: as PID 1 sees it, which differs from the host's number where the engine maps users. `devices`: some were lent,
    and an engine may mount their nodes instead of making them.
    """
    wrong = []
    if set(uid.split()) != {"0"}:
        wrong.append(f"PID 1 runs as uid {uid or 'unknown'}")
    for name, wanted in (("CapEff", _MASK), ("CapPrm", _MASK), ("CapBnd", _MASK), ("CapInh", 0), ("CapAmb", 0)):
        text = facts.field(name)
        if text == "" and name == "CapAmb":
            continue  # gVisor has no ambient capabilities
        if _hexadecimal(text) != wanted:
            wrong.append(f"{name} is {text or 'unknown'}, not {wanted:016x}")
    if facts.field("NoNewPrivs") != "1":
        wrong.append("no_new_privs is not set")
    if isolation == "kernel" and facts.field("Seccomp") != "2":
        wrong.append("no seccomp filter is in force")
    return wrong + _mount_deviations(facts, isolation, devices)


def _hexadecimal(text: str) -> int | None:
    try:
        return int(text, 16)
    except ValueError:
        return None


def _mount_deviations(facts: Facts, isolation: Isolation, devices: bool) -> list[str]:
    found = mounts(facts)
    wrong = [] if any(mount.point == "/" for mount in found) else ["the mounts could not be read"]
    for mount in found:
        masked = mount.root == "/null" and mount.point.startswith("/proc/")  # hidden behind the null device
        known = _WRITABLE.get(mount.point) == mount.kind or masked or (devices and _of_the_toolkit(mount))
        if "rw" in mount.options and not known:
            wrong.append(f"{mount.point} ({mount.kind}) is writable")
        if mount.point == _MPS:
            wrong.append(f"{_MPS} is in the container: the way to the machine's MPS daemon")
    if isolation == "kernel" and not any(mount.point == "/proc/sys" and "ro" in mount.options for mount in found):
        wrong.append("/proc/sys is not read-only")
    return wrong


def _of_the_toolkit(mount: Mount) -> bool:
    """Whether NVIDIA's container toolkit makes the mount in a container of an engine's, writable for uid 0 alone: nodes,
    what hides /proc/driver/nvidia (an older toolkit all, a newer one its params), and its daemons' sockets."""
    if mount.kind == "devtmpfs":
        return mount.point.startswith("/dev/nvidia")
    hidden = mount.point in _HIDDEN or mount.point.startswith("/run/nvidia-ctk-hook")
    return mount.kind == "tmpfs" and (hidden or mount.point in _SOCKETS)


def _foreign(pid: int, isolation: Isolation) -> list[str]:
    """What the host sees of the process itself: its namespaces, and gVisor's sandbox where that was claimed."""
    shared = []
    for name in _NAMESPACES if isolation == "kernel" else _GVISOR_NAMESPACES:
        try:
            if Path(f"/proc/{pid}/ns/{name}").readlink() == Path(f"/proc/self/ns/{name}").readlink():
                shared.append(f"the {name} namespace is the host's")
        except OSError:
            shared.append(f"the {name} namespace could not be read")
    if isolation == "gvisor":
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
        except OSError:
            command = b""
        if command != b"runsc-sandbox":
            shared.append("the process on the host is not gVisor's sandbox")
        elif "\nSeccomp:\t2" not in Path(f"/proc/{pid}/status").read_text():
            shared.append("gVisor's sandbox runs without its seccomp filter")
    return shared
