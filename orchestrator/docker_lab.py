"""Labs on a Docker engine: which backend it is, and whether its image is there or can be built."""

import contextlib

from executor.backends.base import Backend, Progress
from executor.backends.docker import DockerBackend, engine_client
from executor.errors import SandboxUnavailable
from policies.state import cache_dir
from sandbox_images.images import BOOTSTRAP_BASE, DEFAULT_BASE, build_image, image_reference
from sandbox_images.lock import Flavour
from sandbox_images.wheels import BuildError


def docker_backend(image: str | None, runtime: str | None, flavour: Flavour) -> DockerBackend:
    """The engine with that image, or the flavour's own. Raises SandboxUnavailable when none answers."""
    return DockerBackend(image or image_reference(flavour), runtime, flavour)


def usable(runtime: str | None, flavour: Flavour, progress: Progress) -> tuple[Backend, str]:
    """An engine that could run something now, and why. Raises SandboxUnavailable, with the reason against it."""
    docker = docker_backend(None, runtime, flavour)
    if flavour == "gpu":
        return docker, _with_gpus(docker)
    if docker.has_image():
        return docker, "an engine answers and has the image"
    base = _base_at_hand()
    if base is not None:
        with contextlib.suppress(BuildError):
            build_image(engine_client(), "cpu", base, cache_dir(), progress)
            return docker, "an engine answers, and the image was built"
    raise SandboxUnavailable("the Docker engine has no image (labsandbox images build cpu makes it)")


def every_runtime() -> list[Backend]:
    """The engine's standard image under each of its runtimes. Raises SandboxUnavailable when none answers."""
    names = docker_backend(None, None, "cpu").runtimes()
    return [docker_backend(None, name, "cpu") for name in names]


def _with_gpus(docker: DockerBackend) -> str:
    """Why the engine, where it can pass GPUs on and has the image: that is gigabytes, and never built unasked."""
    from executor.gpus.nvml import Nvml

    machine = Nvml().machine
    if machine.problem:
        return "an engine answers"  # and it is said in a moment that there are none
    problems = docker.gpu_problems(machine)
    if len(problems) == len(machine.usable):
        raise SandboxUnavailable(next(iter(problems.values()), "no GPU can be used"))
    if not docker.has_image():
        raise SandboxUnavailable("the Docker engine has no image for GPUs (labsandbox images build gpu makes it)")
    return "an engine answers, passes GPUs on, and has the image"


def _base_at_hand() -> str | None:
    """A base image that the engine holds already: only then is building quick and certain enough to do unasked."""
    tags = {tag for image in engine_client().images.list() for tag in image.tags}
    return next((base for base in (BOOTSTRAP_BASE, DEFAULT_BASE) if base in tags), None)
