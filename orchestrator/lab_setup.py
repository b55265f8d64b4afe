"""Puts a lab together from names and options: policy, request, backend, executor."""

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from executor.backends.base import Backend, Progress
from executor.backends.docker import DockerBackend, engine_client
from executor.backends.oci import RUNTIMES, OciBackend
from executor.errors import SandboxUnavailable
from executor.executor import Executor
from policies.audit import AuditLog
from policies.decision import Request
from policies.merge import box_ceilings, terms_here
from policies.model import PartialLimits, Policy, built_in_policies, load_policy
from policies.state import audit_path, cache_dir, state_dir
from sandbox_images.images import BOOTSTRAP_BASE, DEFAULT_BASE, build_image, image_reference
from sandbox_images.wheels import BuildError

GVISOR_RUNTIME = "runsc"
BackendChoice = Literal["auto", "docker", "oci"]


@dataclass(frozen=True)
class LabOptions:
    """What a person may choose for a run. The limits only tighten the policy's."""

    policy: str = "default"
    backend: BackendChoice = "auto"
    runtime: str | None = None
    image: str | None = None
    limits: PartialLimits = field(default_factory=PartialLimits)

    def portable(self) -> "LabOptions":
        """The same from any working directory."""
        is_file = self.policy not in built_in_policies() and Path(self.policy).exists()
        return replace(self, policy=str(Path(self.policy).absolute())) if is_file else self


@dataclass(frozen=True)
class Lab:
    """An executor with the terms under which it runs experiments."""

    executor: Executor
    policy: Policy
    request: Request
    why: str
    """Which backend, and why that one."""


def open_lab(options: LabOptions, progress: Progress) -> Lab:
    """Reads policy and ceilings, picks the backend, and sweeps what crashed runs left.

    Raises PolicyError for a policy that cannot be used, SandboxUnavailable when no backend can work here.
    """
    policy = load_policy(options.policy)
    ceilings = box_ceilings()
    if options.runtime is None and terms_here(policy, ceilings).isolation == "gvisor":
        options = replace(options, runtime=GVISOR_RUNTIME)
    backend, why = choose_backend(options, progress)
    audit = AuditLog(audit_path())
    executor = Executor(backend, audit, ceilings, progress)
    for swept in [backend, *_daemonless(state_dir(), cache_dir())]:
        Executor(swept, audit).sweep()
    return Lab(executor, policy, Request(limits=options.limits), why)


def choose_backend(options: LabOptions, progress: Progress) -> tuple[Backend, str]:
    """The backend asked for; for "auto", docker if its image is there or can be built, otherwise oci."""
    if options.backend == "oci":
        if options.image is not None:
            raise SandboxUnavailable("--image needs the docker backend: oci has its own environment")
        return _oci(options), "backend oci, as asked"
    if options.backend == "docker" or options.image is not None:
        asked = "as asked" if options.backend == "docker" else "because an image was named"
        return DockerBackend(options.image or image_reference(), options.runtime), f"backend docker, {asked}"
    try:
        docker = DockerBackend(image_reference(), options.runtime)
        if docker.has_image():
            return docker, "backend docker: an engine answers and has the image"
        base = _base_at_hand()
        if base is not None:
            with contextlib.suppress(BuildError):
                build_image(engine_client(), "cpu", base, cache_dir(), progress)
                return docker, "backend docker: an engine answers, and the image was built"
        reason = "the Docker engine has no image (labsandbox images build cpu makes it)"
    except SandboxUnavailable as error:
        reason = str(error)
    return _oci(options), f"backend oci: {reason}"


def every_backend(state: Path, cache: Path) -> list[Backend]:
    """Each backend with each runtime that this machine has, whether or not it can enforce everything."""
    found: list[Backend] = _daemonless(state, cache)
    with contextlib.suppress(SandboxUnavailable):
        docker = DockerBackend(image_reference())
        found += [DockerBackend(image_reference(), runtime) for runtime in docker.runtimes()]
    return found


def _daemonless(state: Path, cache: Path) -> list[Backend]:
    found: list[Backend] = []
    for runtime in RUNTIMES:
        backend = OciBackend(state, cache, runtime)
        with contextlib.suppress(SandboxUnavailable):
            backend.capabilities()
            found.append(backend)
    return found


def _oci(options: LabOptions) -> OciBackend:
    return OciBackend(state_dir(), cache_dir(), options.runtime or "runc")


def _base_at_hand() -> str | None:
    """A base image that the engine holds already: only then is building quick and certain enough to do unasked."""
    tags = {tag for image in engine_client().images.list() for tag in image.tags}
    return next((base for base in (BOOTSTRAP_BASE, DEFAULT_BASE) if base in tags), None)
