"""Builds the sandbox's images, hermetically: the host downloads wheels and runs none of them; the build has no network.

An image is named by what goes into it, so that one which is out of date is never mistaken for the current one.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests

from sandbox_images.lock import FLAVOURS, HERE, lock_file
from sandbox_images.wheels import BuildError, Progress, exclusive, run, scratch, wheelhouse

DEFAULT_BASE = "python:3.11-slim-bookworm"
BOOTSTRAP_BASE = "labsandbox-base:bookworm"
IMAGE_PYTHON = (3, 11)
"""The Python of the bases, which the downloaded wheels must fit."""


def dockerfile(flavour: str) -> Path:
    """The Dockerfile of a flavour, `cpu` or `gpu`. The GPU's stands at the top of the project."""
    return HERE / "Dockerfile.cpu" if flavour == "cpu" else HERE.parent / "Dockerfile.gpu"


def image_reference(flavour: str = "cpu") -> str:
    """Name and tag; the tag is a digest of the lock and the Dockerfile."""
    content = lock_file(flavour).read_bytes() + dockerfile(flavour).read_bytes()
    return f"labsandbox-{flavour}:{hashlib.sha256(content).hexdigest()[:12]}"


def build_image(client: docker.DockerClient, flavour: str, base: str, cache: Path, progress: Progress) -> str:
    """Builds the image of a flavour on `base` and returns its reference. Raises BuildError.

    `base` is an image that the engine has or can pull, or "bootstrap": a Debian made with mmdebstrap.
    """
    if sys.version_info[:2] != IMAGE_PYTHON:
        raise BuildError("the images hold Python {}.{}: build them from that version".format(*IMAGE_PYTHON))
    reference = image_reference(flavour)
    base = _bootstrap(client, cache, progress) if base == "bootstrap" else _find_base(client, base, progress)
    wheels = wheelhouse(lock_file(flavour), cache, progress)
    with tempfile.TemporaryDirectory(prefix="labsandbox-build-") as name:
        context = Path(name)
        shutil.copy(dockerfile(flavour), context / "Dockerfile")
        shutil.copy(lock_file(flavour), context / "requirements.txt")
        shutil.copytree(wheels, context / "wheels", copy_function=_link_or_copy)
        progress(f"building {reference} on {base}, without a network")
        _build(client, context, reference, base)
    return reference


def sandbox_images(client: docker.DockerClient) -> list[dict[str, Any]]:
    """The images of this project that the engine holds, with id, size in bytes, and whether each is current."""
    current = {BOOTSTRAP_BASE, *(image_reference(flavour) for flavour in FLAVOURS if dockerfile(flavour).exists())}
    return [
        {"reference": tag, "id": image.id, "bytes": image.attrs["Size"], "current": tag in current}
        for image in client.images.list()
        for tag in sorted(image.tags)
        if tag.startswith(("labsandbox-cpu:", "labsandbox-gpu:", "labsandbox-base:"))
    ]


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _find_base(client: docker.DockerClient, base: str, progress: Progress) -> str:
    try:
        client.images.get(base)
    except docker.errors.ImageNotFound:
        progress(f"pulling {base}")
        try:
            client.images.pull(base)
        except (docker.errors.APIError, requests.RequestException) as error:
            raise BuildError(f"cannot pull {base} ({_said(error)}); --base bootstrap makes one here") from None
    return base


def _bootstrap(client: docker.DockerClient, cache: Path, progress: Progress) -> str:
    """A minimal Debian with Python, made from the system's package mirror and imported into the engine."""
    try:
        client.images.get(BOOTSTRAP_BASE)
        return BOOTSTRAP_BASE
    except docker.errors.ImageNotFound:
        pass
    if shutil.which("mmdebstrap") is None:
        raise BuildError("mmdebstrap is not installed: apt-get install mmdebstrap")
    archive = cache / "bases" / "bookworm.tar"
    with exclusive(archive):
        if not archive.exists():
            progress("making a Debian base with mmdebstrap")
            with scratch(archive) as folder:
                made = folder / "base.tar"
                packages = "--include=python3,python3-venv"
                run(["mmdebstrap", "--variant=minbase", packages, "bookworm", str(made)], "make a Debian base")
                made.rename(archive)
    name, tag = BOOTSTRAP_BASE.split(":")
    client.api.import_image_from_file(str(archive), repository=name, tag=tag)
    return BOOTSTRAP_BASE


def _build(client: docker.DockerClient, context: Path, reference: str, base: str) -> None:
    try:
        for line in _steps(client, context, reference, base):
            if "error" in line:
                raise BuildError(f"building {reference} failed: {' '.join(str(line['error']).split())[:300]}")
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        raise BuildError(f"building {reference} failed: {_said(error)}") from None


def _steps(client: docker.DockerClient, context: Path, reference: str, base: str) -> Iterator[dict[str, Any]]:
    steps: Iterator[dict[str, Any]] = client.api.build(
        path=str(context),
        tag=reference,
        buildargs={"BASE": base},
        network_mode="none",
        rm=True,
        forcerm=True,
        pull=False,
        decode=True,
    )
    return steps


def _said(error: BaseException) -> str:
    return " ".join(str(getattr(error, "explanation", None) or error).split())[:300]
