"""Puts a lab together from names and options: policy, request, backend, executor."""

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from executor.backends.base import Backend, Progress
from executor.backends.oci import RUNTIMES, OciBackend
from executor.errors import SandboxUnavailable
from executor.executor import Executor
from executor.places import Places, Room
from orchestrator.choices import BackendChoice
from orchestrator.serving import supply
from policies.asking import GPU_WAIT
from policies.audit import AuditLog
from policies.decision import Request
from policies.merge import box_ceilings, terms_here
from policies.model import PartialLimits, Policy, built_in_policies, load_policy
from policies.state import audit_path, cache_dir, state_dir
from sandbox_images.lock import Flavour

GVISOR_RUNTIME = "runsc"


@dataclass(frozen=True)
class LabOptions:
    """What a person may choose for a run. The limits only tighten the policy's."""

    policy: str = "default"
    backend: BackendChoice = "auto"
    runtime: str | None = None
    image: str | None = None
    """For docker an image's reference, for oci the path of a Python environment's folder (it begins with / or .)."""
    limits: PartialLimits = field(default_factory=PartialLimits)
    gpu_wait: float = GPU_WAIT
    """Seconds to wait at most for GPUs that others use."""

    @property
    def folder(self) -> Path | None:
        """The environment's folder, where `image` is one."""
        is_path = self.image is not None and self.image.startswith(("/", "./", "../", "~/"))
        return Path(self.image).expanduser() if self.image is not None and is_path else None

    def portable(self) -> "LabOptions":
        """The same from any working directory."""
        is_file = self.policy not in built_in_policies() and Path(self.policy).exists()
        policy = str(Path(self.policy).absolute()) if is_file else self.policy
        return replace(self, policy=policy, image=str(self.folder.absolute()) if self.folder else self.image)


@dataclass(frozen=True)
class Lab:
    """An executor with the terms under which it runs experiments."""

    executor: Executor
    policy: Policy
    request: Request
    why: str
    """Which backend, and why that one."""

    @property
    def flavour(self) -> Flavour:
        """Which packages its containers hold."""
        return self.executor.backend.flavour


def open_lab(options: LabOptions, progress: Progress) -> Lab:
    """Reads policy and ceilings, picks the backend, and sweeps what crashed runs left.

    Raises PolicyError for a policy that cannot be used, SandboxUnavailable when no backend can work here.
    """
    policy = load_policy(options.policy)
    ceilings = box_ceilings()
    if options.runtime is None and terms_here(policy, ceilings).isolation == "gvisor":
        options = replace(options, runtime=GVISOR_RUNTIME)
    backend, why = choose_backend(options, progress, _flavour(options, terms_here(policy, ceilings)))
    audit = AuditLog(audit_path())
    executor = Executor(backend, audit, ceilings, progress, pool=supply(), places=Places(Room.here(ceilings)))
    for swept in [backend, *_daemonless(state_dir(), cache_dir())]:
        Executor(swept, audit).sweep()
    return Lab(executor, policy, Request(limits=options.limits, gpu_wait=options.gpu_wait), why)


def _flavour(options: LabOptions, terms: Policy) -> Flavour:
    """The packages for what is asked: with GPUs, those that can use them."""
    asked = options.limits.gpus if options.limits.gpus is not None else min(terms.gpu.unasked, terms.limits.gpus)
    return "gpu" if asked else "cpu"


def choose_backend(options: LabOptions, progress: Progress, flavour: Flavour) -> tuple[Backend, str]:
    """The backend asked for; for "auto", docker if its image is there or can be built, otherwise oci."""
    if options.backend == "oci" or options.folder is not None:
        if options.image is not None and options.folder is None:
            raise SandboxUnavailable("with the oci backend, --image is the folder of a Python environment (/… or ./…)")
        if options.backend == "docker":
            raise SandboxUnavailable("with the docker backend, --image is an image's name, not a folder")
        asked = "as asked" if options.backend == "oci" else "because an environment's folder was named"
        return _oci(options, flavour), f"backend oci, {asked}"
    # The client of an engine takes as long to load as all the rest.
    from orchestrator.docker_lab import docker_backend, usable

    if options.backend == "docker" or options.image is not None:
        asked = "as asked" if options.backend == "docker" else "because an image was named"
        return docker_backend(options.image, options.runtime, flavour), f"backend docker, {asked}"
    try:
        backend, why = usable(options.runtime, flavour, progress)
        return backend, f"backend docker: {why}"
    except SandboxUnavailable as error:
        return _oci(options, flavour), f"backend oci: {error}"


def every_backend(state: Path, cache: Path) -> list[Backend]:
    """Each backend with each runtime that this machine has, whether or not it can enforce everything."""
    from orchestrator.docker_lab import every_runtime

    found: list[Backend] = _daemonless(state, cache)
    with contextlib.suppress(SandboxUnavailable):
        found += every_runtime()
    return found


def _daemonless(state: Path, cache: Path) -> list[Backend]:
    found: list[Backend] = []
    for runtime in RUNTIMES:
        backend = OciBackend(state, cache, runtime)
        with contextlib.suppress(SandboxUnavailable):
            backend.capabilities()
            found.append(backend)
    return found


def _oci(options: LabOptions, flavour: Flavour) -> OciBackend:
    return OciBackend(state_dir(), cache_dir(), options.runtime or "runc", flavour, options.folder)
