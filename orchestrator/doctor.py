"""Looks at this machine: what labsandbox can enforce here, and what to do about the rest."""

import os
import platform
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from executor.backends.docker import DockerBackend
from executor.backends.oci import OciBackend
from executor.errors import SandboxUnavailable
from executor.gpus.nvml import Nvml
from executor.observe import controllers
from orchestrator.lab_setup import every_backend
from policies.audit import AuditError
from policies.audit_check import verify
from policies.decision import Capabilities
from policies.merge import BOX_CEILING, box_ceilings
from policies.model import PolicyError
from policies.state import audit_path, cache_dir, lock_dir, state_dir, state_problem
from sandbox_images.environment import built_environments
from sandbox_images.images import image_reference

Status = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: Status
    detail: str
    remedy: str = ""
    """What to do about it; empty when there is nothing to do."""


def examine() -> list[Finding]:
    """Every finding, in the order in which they matter."""
    return [*_system(), *_rootless(), _oci(), *_docker(), _gvisor(), *_own_files(), *_gpus()]


def can_run(findings: list[Finding]) -> bool:
    """Whether experiments can run here: one backend works, and nothing that every run needs is broken."""
    backends = [finding for finding in findings if finding.name.startswith("backend ")]
    return any(finding.status == "ok" for finding in backends) and not any(
        finding.status == "broken" for finding in findings
    )


def _system() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.machine()}, Linux {platform.release()}")
    there = controllers()
    wanted = {"memory", "cpu", "pids"}
    version = "v1 or hybrid" if "memory" in _v1_controllers() else "v2"
    if wanted <= there:
        yield Finding("control groups", "ok", f"{version}: {', '.join(sorted(wanted))}")
    else:
        absent = ", ".join(sorted(wanted - there))
        remedy = "boot with these controllers enabled (cgroup_enable=memory on some boards)"
        yield Finding("control groups", "missing", f"{version}, without {absent}", remedy)


def _v1_controllers() -> set[str]:
    return {line.split(":")[1] for line in Path("/proc/self/cgroup").read_text().splitlines()}


def _rootless() -> Iterator[Finding]:
    """For a user without root: what a rootless engine needs to hold memory, processors and processes."""
    if os.geteuid() == 0:
        return
    user = os.getuid()
    group = Path(f"/sys/fs/cgroup/user.slice/user-{user}.slice/user@{user}.service/cgroup.controllers")
    delegated = set(group.read_text().split()) if group.exists() else set()
    absent = sorted({"memory", "cpu", "pids"} - delegated)
    if not absent and shutil.which("newuidmap"):
        detail = "control groups are delegated: a rootless engine at DOCKER_HOST can hold every limit"
        yield Finding("without root", "ok", detail)
    else:
        lacks = [f"no delegation of {', '.join(absent)} (cgroup v2 with systemd)"] if absent else []
        lacks += [] if shutil.which("newuidmap") else ["no newuidmap (package uidmap)"]
        yield Finding("without root", "missing", "; ".join(lacks), "docs/security.md, Without root")


def _gvisor() -> Finding:
    """Whether policies that require `isolation: gvisor` can be served, and by which backends."""
    if shutil.which("runsc") is None:
        return Finding("gVisor", "missing", "runsc is not installed", "apt-get install runsc, then ./setup.sh run")
    backends = [f"{one.name}" for one in every_backend(state_dir(), cache_dir()) if one.runtime.startswith("runsc")]
    if not backends:
        return Finding("gVisor", "missing", "runsc is installed, and no backend can use it", "run as root")
    return Finding("gVisor", "ok", f"runsc, on {' and '.join(backends)} (--policy gvisor)")


def _oci() -> Finding:
    try:
        capabilities = OciBackend(state_dir(), cache_dir()).capabilities()
    except SandboxUnavailable as error:
        return Finding("backend oci", "missing", str(error), _oci_remedy())
    built = any(found["current"] for found in built_environments(cache_dir()))
    detail = "environment built" if built else "environment is built at the first run"
    return _backend_finding(capabilities, f"runc, {detail}")


def _oci_remedy() -> str:
    if shutil.which("runc") is None:
        return "apt-get install runc"
    return "run as root" if os.geteuid() != 0 else ""


def _docker() -> Iterator[Finding]:
    try:
        backend = DockerBackend(image_reference())
    except SandboxUnavailable as error:
        yield Finding("backend docker", "missing", str(error), "apt-get install docker.io, and start the engine")
        return
    try:
        yield _backend_finding(backend.capabilities(), f"engine {backend.engine()}, default runtime {backend.runtime}")
        if backend.has_image():
            yield Finding("image cpu", "ok", image_reference())
        else:
            remedy = "labsandbox images build cpu (--base bootstrap where no registry answers)"
            yield Finding("image cpu", "missing", f"the engine has no {image_reference()}", remedy)
    except SandboxUnavailable as error:
        yield Finding("backend docker", "missing", str(error))


def _backend_finding(capabilities: Capabilities, detail: str) -> Finding:
    name = f"backend {capabilities.backend}"
    if not capabilities.missing:
        return Finding(name, "ok", f"enforces every limit ({detail})")
    cannot = "; ".join(f"{limit}: {why}" for limit, why in sorted(capabilities.missing.items()))
    return Finding(name, "missing", f"cannot enforce {cannot} ({detail})", "runs that need these are refused")


def _own_files() -> Iterator[Finding]:
    problem = state_problem(state_dir())
    if problem:
        remedy = "make it writable, or name another with LABSANDBOX_STATE_DIR: no run starts until then"
        yield Finding("state folder", "broken", f"{state_dir()} cannot be written: {problem}", remedy)
    try:
        found = verify(audit_path())
        if problem and not found.records:
            pass  # there is no log to speak of
        elif found.ok:
            yield Finding("audit log", "ok", f"{found.records} records in {audit_path()}, as signed")
        else:
            remedy = "labsandbox audit verify; keep the files, move them aside, and ask who wrote to them"
            yield Finding("audit log", "broken", "; ".join(found.problems[:3]), remedy)
    except AuditError as error:
        yield Finding("audit log", "broken", str(error), "move it aside, keep it, and ask who wrote to it")
    try:
        number = len(box_ceilings())
        detail = f"{number} in force" if number else f"none ({BOX_CEILING} sets one)"
        yield Finding("box ceiling", "ok", detail)
    except PolicyError as error:
        yield Finding("box ceiling", "broken", str(error), "mend the file: no run starts until then")


def _gpus() -> Iterator[Finding]:
    machine = Nvml().machine
    if machine.problem:
        yield Finding("NVIDIA GPUs", "missing", f"{machine.problem}; --gpus cannot be used")
        return
    broken = [f"{device.uuid}: {device.problem}" for device in machine.devices if device.problem]
    detail = f"{len(machine.usable)} to lend, driver {machine.driver}, CUDA {machine.cuda or '?'}"
    yield Finding("NVIDIA GPUs", "broken" if broken and not machine.usable else "ok", "; ".join([detail, *broken]))
    yield _queue()
    for backend in every_backend(state_dir(), cache_dir()):
        problems = backend.gpu_problems(machine)
        can = len(machine.usable) - len(problems)
        name = f"GPUs in {backend.name}+{backend.runtime}"
        detail = f"{can} can be passed on" if can else ""
        yield Finding(
            name, "ok" if can else "missing", "; ".join([detail, *dict.fromkeys(problems.values())]).strip("; ")
        )


def _queue() -> Finding:
    folder = lock_dir()
    remedy = f"for several users: d {folder} 1777 root root - in /etc/tmpfiles.d/labsandbox.conf"
    try:
        info = folder.stat()
    except OSError as error:
        return Finding("queue for GPUs", "missing", f"{folder}: {error.strerror}; the first run makes it", remedy)
    if info.st_uid != 0 or stat.S_IMODE(info.st_mode) != 0o1777:
        return Finding("queue for GPUs", "missing", f"{folder} is not everybody's", remedy)
    return Finding("queue for GPUs", "ok", str(folder))
