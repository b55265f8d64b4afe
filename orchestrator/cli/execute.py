"""`labsandbox exec FILE`: one experiment, no agents."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from executor.imports import MAX_SOURCE, begin_check, needed_imports
from orchestrator.cli import options
from orchestrator.cli.status import exit_status
from orchestrator.cli.terminal import note, print_json
from orchestrator.errors import UsageProblem

if TYPE_CHECKING:
    from executor.experiment import Config


@options.with_lab
def execute(
    *,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A Python file, or - for standard input.")],
    requirements: Annotated[
        Path | None, typer.Option("--requirements", help="Packages that it needs.", show_default=False)
    ] = None,
    asked: options.Asked,
    results: options.Results = Path("results"),
    seed: options.Seed = 0,
    params: Annotated[
        str | None, typer.Option("--params", metavar="JSON", help="What lab.params gives it.", show_default=False)
    ] = None,
    tracker: options.TrackTo = None,
    out: options.TrackerOut = None,
    online: options.Online = False,
    as_json: options.Json = False,
) -> None:
    """Run one Python file in the sandbox."""
    code = read_code(file)
    reading = begin_check(code)
    # Loading these takes longer than parsing, which goes on meanwhile.
    from executor.experiment import Experiment
    from orchestrator.cli.watching import LogPrinter
    from orchestrator.lab_setup import open_lab
    from orchestrator.single import run_single

    report = reading()
    if report.error is not None:
        where = f"{file}, line {report.line}" if report.line else file
        raise UsageProblem(f"{where}: {report.error}")
    experiment = Experiment(
        code=code,
        seed=seed,
        requirements=read_requirements(requirements),
        imports=needed_imports(report),
        params=read_params(params),
    )
    chosen = asked.of_lab()
    tracking = options.tracking(tracker, out, online, results)
    lab = open_lab(chosen, note)
    note(lab.why)
    log = sys.stderr if as_json else sys.stdout
    watch = lambda to: LogPrinter(to, log, sys.stderr)  # noqa: E731
    execution, folder = run_single(lab, experiment, report.imports, results, watch, tracking, note)
    if as_json:
        from results.extract import last_values
        from results.series import read_series

        print_json({**execution.as_json(), "extracted": last_values(read_series(folder))})
    else:
        from orchestrator.cli.show import show_execution

        show_execution(execution, folder)
    raise typer.Exit(exit_status(execution.outcome))


def read_code(name: str) -> str:
    """The source from a file, or from standard input for "-". Raises UsageProblem."""
    try:
        if name == "-":
            raw = sys.stdin.buffer.read(MAX_SOURCE + 1)
        else:
            with Path(name).open("rb") as file:
                raw = file.read(MAX_SOURCE + 1)
        if len(raw) > MAX_SOURCE:
            raise UsageProblem(f"{name} is larger than the {MAX_SOURCE} bytes that are accepted")
        return raw.decode("utf-8")
    except OSError as error:
        raise UsageProblem(f"cannot read {name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageProblem(f"{name} is not UTF-8 text") from None


def read_params(text: str | None) -> "Config":
    """Hyperparameters by name. Raises UsageProblem."""
    from executor.experiment import Experiment

    try:
        return Experiment(code="", params=json.loads(text)).params if text is not None else {}
    except (ValueError, RecursionError):
        raise UsageProblem('--params is a JSON object of numbers, words and switches, such as {"lr": 0.1}') from None


def read_requirements(path: Path | None) -> tuple[str, ...]:
    """One requirement a line; comments and blank lines are left out. Raises UsageProblem."""
    if path is None:
        return ()
    lines = [line.split("#")[0].strip() for line in read_code(str(path)).splitlines()]
    found = tuple(line for line in lines if line)
    if len(found) > 50 or any(len(line) > 200 for line in found):
        raise UsageProblem(f"{path}: at most 50 requirements of at most 200 characters each")
    if options_line := next((line for line in found if line.startswith("-")), None):
        raise UsageProblem(f"{path}: {options_line!r} is an option of pip, not a requirement")
    from sandbox_images.lock import check_requirements

    try:
        check_requirements(found)
    except ValueError as error:
        raise UsageProblem(f"{path}: {error}") from None
    return found
