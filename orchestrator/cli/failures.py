"""The one place where an error becomes a line and an exit status. Loaded when something went wrong."""

import errno
import os
import sqlite3
import sys
from pathlib import Path

import typer

from executor.errors import ExecutorError, RequestDenied
from orchestrator.agents.errors import AgentRefused, AgentsUnavailable
from orchestrator.cli.status import DENIED, INFRASTRUCTURE, INTERRUPTED, USAGE
from orchestrator.cli.terminal import note
from orchestrator.errors import UsageProblem
from policies.audit import AuditError
from policies.model import PolicyError
from policies.state import state_dir, state_problem
from results.export.tracker import ExportError
from results.store import StoreError
from sandbox_images.wheels import BuildError


def status_of(error: BaseException) -> int:
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
    if isinstance(error, UsageProblem | PolicyError | AgentRefused | ExportError):
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
    if isinstance(error, OSError | sqlite3.Error) and (told := _of_state(error)):
        note(f"labsandbox: {told}")
        return INFRASTRUCTURE
    raise error


def _of_state(error: OSError | sqlite3.Error) -> str | None:
    """What to say where it is the state folder that cannot be used."""
    state = state_dir()
    if isinstance(error, OSError) and not (error.filename and Path(os.fsdecode(error.filename)).is_relative_to(state)):
        return None
    problem = state_problem(state) or (error.strerror if isinstance(error, OSError) else None)
    return (
        f"the state folder {state} cannot be written: {problem} (LABSANDBOX_STATE_DIR names another)"
        if problem
        else None
    )
