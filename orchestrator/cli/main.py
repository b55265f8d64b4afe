"""The `labsandbox` command: one app, and the one place where an error becomes a line and an exit status."""

import errno
import os
import signal
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from executor.errors import ExecutorError, RequestDenied
from orchestrator.agents.errors import AgentRefused, AgentsUnavailable
from orchestrator.cli import again, agents, audit, doctor, execute, images, policy, run, sprints, upkeep
from orchestrator.cli.status import DENIED, INFRASTRUCTURE, INTERRUPTED, USAGE
from orchestrator.cli.terminal import console, note, tolerate_any_encoding
from orchestrator.errors import UsageProblem
from policies.audit import AuditError
from policies.model import PolicyError
from results.store import StoreError
from sandbox_images.wheels import BuildError

app = typer.Typer(
    name="labsandbox",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="An autonomous AI research lab whose experiments run in throwaway containers with enforced limits.",
)
app.command("run")(run.run)
app.command("resume")(run.resume)
app.command("rerun")(again.rerun)
app.command("replay")(again.replay)
app.command("next")(sprints.next_goals)
app.command("exec")(execute.execute)
app.command("doctor")(doctor.doctor)
app.command("ps")(upkeep.ps)
app.command("kill")(upkeep.kill)
app.command("gc")(upkeep.gc)
app.add_typer(sprints.app, name="sprints")
app.add_typer(policy.app, name="policy")
app.add_typer(audit.app, name="audit")
app.add_typer(images.app, name="images")
app.add_typer(agents.app, name="agents")


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"labsandbox {version('labsandbox')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


def main() -> None:
    """Runs the command line and exits."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # asked to end: clean up as after Ctrl-C
    tolerate_any_encoding()
    try:
        status = app(standalone_mode=False)
    except BaseException as error:
        status = _status_of(error)
    else:
        if status == INTERRUPTED:  # typer makes a status of an interrupt, and says nothing
            note("interrupted")
    sys.exit(status if isinstance(status, int) else 0)


def _status_of(error: BaseException) -> int:
    """Tells the person, and returns the exit status. What nobody foresaw is raised again, with its trace."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        note("interrupted")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # The reader of our output is gone (labsandbox … | head); there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if (usage := getattr(error, "format_message", None)) is not None:  # click's errors, whichever click typer carries
        note(f"labsandbox: {usage()}")
        return USAGE
    if isinstance(error, StoreError):
        note(f"labsandbox: {error}")
        return INFRASTRUCTURE if error.errno == errno.ENOSPC else USAGE
    if isinstance(error, UsageProblem | PolicyError | AgentRefused):
        note(f"labsandbox: {error}")
        return USAGE
    if isinstance(error, RequestDenied):
        note(f"labsandbox: denied: {error}")
        return DENIED
    if isinstance(error, ExecutorError | AgentsUnavailable | AuditError | BuildError):
        note(f"labsandbox: {error}")
        return INFRASTRUCTURE
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        note(f"labsandbox: no space left on device ({error.filename or 'while writing results'})")
        return INFRASTRUCTURE
    raise error
