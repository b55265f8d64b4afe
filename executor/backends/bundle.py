"""The OCI bundle of one container: its config.json and the bones of its root file system.

The root file system is a folder of mount points. What is in it are read-only binds of the host's system folders and
of the sandbox's environment; nothing of the host's /home, /root, /var or /run is there, and of its /etc only the
settings of the dynamic linker and of fonts. Format: OCI runtime specification 1.0.2, config.json.
"""

import json
from pathlib import Path
from typing import Any

from executor.backends.base import GVISOR_TASKS, KEPT_CAPABILITIES, ContainerSpec, pid1
from executor.backends.seccomp import seccomp_profile
from sandbox_images.environment import Environment

ENVIRONMENT_MOUNT = "/opt/sandbox"
PYTHON = f"{ENVIRONMENT_MOUNT}/bin/python3"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SETTINGS = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/fonts")
_CPU_PERIOD = 100_000  # microseconds, the kernel's default

_ETC = {
    "passwd": "root:x:0:0:root:/:/bin/false\nexperiment:x:65534:65534:experiment:/workspace:/bin/sh\n",
    "group": "root:x:0:\nexperiment:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "hostname": "sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
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


def write_bundle(folder: Path, spec: ContainerSpec, environment: Environment) -> None:
    """Makes `folder`, with config.json written last. Raises OSError."""
    root = folder / "rootfs"
    (root / "etc").mkdir(parents=True)
    for name, text in _ETC.items():
        (root / "etc" / name).write_text(text)
        (root / "etc" / name).chmod(0o644)
    for path in (root, root / "etc"):  # whatever the caller's umask is, the experiment's user must get in
        path.chmod(0o755)
    binds = _system_binds(root) + _environment_binds(environment)
    config = json.dumps(_config(spec, binds), indent=1)
    temporary = folder / "config.json.new"
    temporary.write_text(config)
    temporary.rename(folder / "config.json")


def _system_binds(root: Path) -> list[dict[str, Any]]:
    """Binds the host's system folders; those that are links (a merged /usr) become the same links."""
    binds = []
    for path in _SYSTEM + _SETTINGS:
        source = Path(path)
        if source.is_symlink():
            (root / path[1:]).symlink_to(source.readlink())
        elif source.exists():
            binds.append(_bind(path, path))
    return binds


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
        "cpus": {"period": _CPU_PERIOD, "quota": round(limits.cpus * _CPU_PERIOD)},
        "pids": {"limit": tasks},
    }
    return {"cpu" if name == "cpus" else name: group for name, group in groups.items() if name not in spec.unheld}


def _config(spec: ContainerSpec, binds: list[dict[str, Any]]) -> dict[str, Any]:
    limits = spec.limits
    kept = [f"CAP_{name}" for name in KEPT_CAPABILITIES]
    shm = spec.sized(limits.shm, "1777", "noexec")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0, "umask": 0o022},
            "args": pid1(PYTHON),
            "env": [],
            "cwd": "/",
            "capabilities": {"bounding": kept, "effective": kept, "permitted": kept},
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "hard": limits.open_files, "soft": limits.open_files},
                {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
            ],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
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
