"""The OCI bundle of one container: its config.json. Format: OCI runtime specification 1.0.2.

What is in its root file system (rootfs.py) are read-only binds of the host's system folders and of the sandbox's
environment; nothing of the host's /home, /root, /var or /run is there, and of its /etc only the settings of the dynamic
linker and of fonts.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from executor.backends.base import AHEAD_SHARES, GVISOR_TASKS, KEPT_CAPABILITIES, ContainerSpec, pid1
from executor.backends.rootfs import root_of
from executor.backends.seccomp import seccomp_profile
from executor.gpus.cdi import Edits, apply
from executor.gpus.driver import dmem_limit
from sandbox_images.environment import Environment

ENVIRONMENT_MOUNT = "/opt/sandbox"
PYTHON = f"{ENVIRONMENT_MOUNT}/bin/python3"
_HOSTS = (
    *(Path(f"/{name}") for name in ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")),
    *(Path(f"/etc/{name}") for name in ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "fonts")),
)
_DMEM = Path("/sys/fs/cgroup/dmem.capacity")
_CPU_PERIOD = 100_000  # microseconds, the kernel's default

_MASKED = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
]
_READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def write_bundle(
    folder: Path, spec: ContainerSpec, environment: Environment, roots: Path, edits: Iterable[Edits] = ()
) -> None:
    """Writes `folder`/config.json, for a root file system below `roots`.

    edits: what the lent devices need in the container. Raises OSError, SandboxUnavailable.
    """
    binds = _system_binds() + _environment_binds(environment)
    config = apply(_config(spec, binds), edits)
    config["root"]["path"] = str(root_of(roots, _links(), config["mounts"]))
    temporary = folder / "config.json.new"
    temporary.write_text(json.dumps(config, indent=1))
    temporary.rename(folder / "config.json")


def _links() -> dict[str, str]:
    """Of the host's system folders, those that are links (a merged /usr), which are the same links inside."""
    return {str(path): str(path.readlink()) for path in _HOSTS if path.is_symlink()}


def _system_binds() -> list[dict[str, Any]]:
    return [_bind(str(path), str(path)) for path in _HOSTS if path.exists() and not path.is_symlink()]


def _environment_binds(environment: Environment) -> list[dict[str, Any]]:
    binds = [_bind(str(environment.path), ENVIRONMENT_MOUNT)]
    if not environment.base.is_relative_to("/usr"):
        binds.append(_bind(str(environment.base), str(environment.base)))
    return binds


def _bind(source: str, target: str) -> dict[str, Any]:
    options = ["bind", "ro", "nosuid", "nodev", "private"]
    return {"destination": target, "type": "bind", "source": source, "options": options}


def _tmpfs(target: str, options: str) -> dict[str, Any]:
    return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options.split(",")}


def _control_group(spec: ContainerSpec) -> dict[str, Any]:
    limits = spec.limits
    tasks = limits.pids + (GVISOR_TASKS if spec.isolation == "gvisor" else 0)
    groups: dict[str, dict[str, Any]] = {
        "memory": {"limit": limits.memory, "swap": limits.memory},
        "cpus": {
            "period": _CPU_PERIOD,
            "quota": round(limits.cpus * _CPU_PERIOD),
            **({"shares": AHEAD_SHARES} if spec.ahead else {}),
        },
        "pids": {"limit": tasks},
    }
    held = {"cpu" if name == "cpus" else name: group for name, group in groups.items() if name not in spec.unheld}
    if (dmem := _device_memory(spec)) is not None:
        held["unified"] = {"dmem.max": dmem}
    return held


def _device_memory(spec: ContainerSpec) -> str | None:
    """For `dmem.max`, where this kernel counts the memory of the lent devices (cgroup v2 with the dmem controller)."""
    try:
        capacity = _DMEM.read_text()
    except OSError:
        return None
    return dmem_limit(spec.gpus, spec.limits.gpu_memory, capacity) if spec.gpus else None


def _config(spec: ContainerSpec, binds: list[dict[str, Any]]) -> dict[str, Any]:
    limits = spec.limits
    kept = [f"CAP_{name}" for name in KEPT_CAPABILITIES]
    shm = spec.sized(limits.shm, "1777", "noexec")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0, "umask": 0o022},
            "args": pid1(PYTHON, emptied=spec.isolation == "gvisor"),  # whose runtime adds variables, and shows them
            "env": [],
            "cwd": "/",
            "capabilities": {"bounding": kept, "effective": kept, "permitted": kept},
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "hard": limits.open_files, "soft": limits.open_files},
                {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
            ],
            "noNewPrivileges": True,
        },
        "root": {"readonly": True},
        "hostname": "sandbox",
        "annotations": spec.owner.labels(),
        "mounts": [
            {
                "destination": "/proc",
                "type": "proc",
                "source": "proc",
                "options": ["nosuid", "noexec", "nodev"],
            },
            _tmpfs("/dev", "nosuid,noexec,strictatime,mode=755,size=65536k"),
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
            _tmpfs("/dev/shm", shm),
            {
                "destination": "/sys",
                "type": "sysfs",
                "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"],
            },
            *binds,
            *(_tmpfs(target, options) for target, options in spec.tmpfs().items()),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "cgroupsPath": f"/labsandbox/{spec.execution_id}",
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                **_control_group(spec),
            },
            "seccomp": seccomp_profile(),
            "maskedPaths": _MASKED,
            "readonlyPaths": _READ_ONLY,
        },
    }
