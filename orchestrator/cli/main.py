"""The `labsandbox` command: one app, whose commands are loaded when they are called."""

import gc
import os
import signal
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from orchestrator.cli.status import INTERRUPTED, USAGE
from orchestrator.cli.terminal import console, note, tolerate_any_encoding

# Where each command is, and what `--help` says of it: the first sentence of its own help. Loading them all for that would
# take a second.
COMMANDS = {
    "run": ("run:run", "Let the team plan, write, run, repair and judge an experiment for each goal."),
    "resume": ("run:resume", "Carry on with a sprint that broke off, at the first step that did not end."),
    "sweep": (
        "sweep:sweep",
        "Search for an experiment's best parameters, each trial in its own container.",
    ),
    "rerun": (
        "again:rerun",
        "Repeat a sprint's experiment: same code, image and packages; and say what came out differently.",
    ),
    "replay": ("again:replay", "Run a recorded sprint's code in the sandbox, and say whose fault it is if it fails."),
    "next": (
        "sprints:next_goals",
        "What the sprints' validators would try next; `labsandbox run --next SPRINT` takes one up.",
    ),
    "report": ("sprints:report", "Write a sprint's report anew: report.html, report.md and figures, from its records."),
    "exec": ("execute:execute", "Run one Python file in the sandbox."),
    "export": (
        "export:export",
        "Write a run's results for another tool. Nothing leaves this machine unless --online says so.",
    ),
    "doctor": ("doctor:doctor", "Say what this machine can enforce, and what to do about the rest."),
    "gpus": ("gpus:gpus", "Show this machine's GPUs: what is on them, whose it is, and the queue."),
    "ui": ("ui:ui", "Show sprints, audit log and GPUs in a browser; start and stop sprints."),
    "serve": (
        "serve:serve",
        "Keep containers warm for this user's commands: a run takes one that waits, and starts at once.",
    ),
    "ps": ("upkeep:ps", "List labsandbox's containers on this machine."),
    "kill": ("upkeep:kill", "End a container now; its run is recorded as ended from outside."),
    "gc": (
        "upkeep:gc",
        "Remove what crashed runs left: containers, unfinished files and downloads, packages unused for a month.",
    ),
    "sprints": ("sprints:app", "Sprints: goals, verdicts and where their results are."),
    "memory": ("memory:app", "What earlier sprints and sweeps found: goals, findings with effect sizes, dead ends."),
    "policy": ("policy:app", "Policies: what an experiment may use."),
    "audit": ("audit:app", "The audit log of every policy decision, start, limit and end."),
    "images": ("images:app", "The sandbox's images, and the environment of the oci backend."),
    "agents": ("agents:app", "The team of agents, its keys, and a server of your own."),
}


class _Commands(TyperGroup):
    """The commands by name; only the one that is called is loaded."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """What `--help` needs of it."""
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1], short_help=COMMANDS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        found = load(str(name)) if command else None
        gc.freeze()
        gc.enable()
        return name, found, rest


def load(name: str) -> Any:
    """Loads a command. Returns it with its options."""
    module, what = COMMANDS[name][0].split(":")
    found = getattr(import_module(f"orchestrator.cli.{module}"), what)
    home = typer.Typer(add_completion=False)
    if isinstance(found, typer.Typer):
        home.add_typer(found, name=name)
        return typer.main.get_group(home).commands[name]
    home.command(name)(found)
    return typer.main.get_command(home)


app = typer.Typer(
    name="labsandbox",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="An autonomous AI research lab whose experiments run in throwaway containers with enforced limits.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        console().print(f"labsandbox {version('labsandbox')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


def _help() -> int:
    """What there is to be said to whoever says nothing."""
    app(["--help"], standalone_mode=False)
    return USAGE


def _without_reader() -> bool:
    """Makes of a closed standard output a pipe that nobody reads: else the next file that is opened would be it."""
    reader, writer = os.pipe()
    os.close(reader)
    if writer != 1:
        os.dup2(writer, 1)
        os.close(writer)
    sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115
    return True


def main() -> None:
    """Runs the command line and exits."""
    gc.disable()  # what is loaded until a command begins stays: looking for garbage in it takes a third of the time
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # there are none, and looking for them takes 20 ms
    for asked in (signal.SIGTERM, signal.SIGHUP):  # to end, or the terminal is gone: clean up as after Ctrl-C
        if signal.getsignal(asked) is not signal.SIG_IGN:  # nohup
            signal.signal(asked, signal.default_int_handler)
    closed = _without_reader() if sys.stdout is None else False
    tolerate_any_encoding()
    try:
        status = app(standalone_mode=False) if sys.argv[1:] else _help()
        sys.stdout.flush()
    except BaseException as error:
        from orchestrator.cli.failures import status_of

        if closed and isinstance(error, BrokenPipeError | SystemExit):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            note("labsandbox: standard output is closed")
            status = USAGE
        else:
            status = status_of(error)
    else:
        if status == INTERRUPTED:  # typer makes a status of an interrupt, and says nothing
            note("interrupted")
    sys.exit(status if isinstance(status, int) else 0)
