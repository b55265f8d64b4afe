"""`labsandbox images`: what is inside the containers."""

from typing import Annotated, Literal

import typer
from rich.table import Column, Table

from executor.backends.docker import engine_client
from executor.errors import SandboxUnavailable
from orchestrator.cli import options
from orchestrator.cli.terminal import console, note, print_json
from orchestrator.gpu_check import verify_gpu_image
from policies.state import cache_dir
from policies.units import format_size
from sandbox_images.environment import built_environments, environment
from sandbox_images.images import DEFAULT_BASE, build_image, sandbox_images

app = typer.Typer(no_args_is_help=True, help="The sandbox's images, and the environment of the oci backend.")
_BUILD_TIMEOUT = 1800  # seconds without a word from the engine


@app.command("build")
def build(
    flavour: Annotated[
        Literal["cpu", "gpu", "environment", "gpu-environment"],
        typer.Argument(help="An image for an engine, or the environment that the oci backend uses."),
    ] = "cpu",
    base: Annotated[str, typer.Option("--base", help="Base image, or bootstrap: one made here.")] = DEFAULT_BASE,
    as_json: options.Json = False,
) -> None:
    """Build an image from locked wheels, without a network."""
    if flavour in ("environment", "gpu-environment"):
        made = environment(cache_dir(), note, "gpu" if flavour == "gpu-environment" else "cpu")
        reference, digest = str(made.path), made.digest
    else:
        client = engine_client(timeout=_BUILD_TIMEOUT)
        reference = build_image(client, flavour, base, cache_dir(), note)
        digest = str(client.images.get(reference).id)
        if flavour == "gpu":
            note(verify_gpu_image())
    if as_json:
        print_json({"reference": reference, "digest": digest})
    else:
        console().print(f"{reference} ({digest})", soft_wrap=True)


@app.command("list")
def list_images(as_json: options.Json = False) -> None:
    """The images that the engine holds, and the environments in the cache."""
    found = built_environments(cache_dir())
    try:
        found += sandbox_images(engine_client())
    except SandboxUnavailable as error:
        note(str(error))
    if as_json:
        print_json(found)
        return
    table = Table(Column("reference", overflow="fold"), "id", "size", "current")
    for image in found:
        size = format_size(image["bytes"]) if image["bytes"] is not None else "–"
        table.add_row(image["reference"], image["id"][:19], size, "yes" if image["current"] else "no")
    console().print(table)
