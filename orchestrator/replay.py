"""The code of a recorded sprint, of whatever origin, in our sandbox; and whose fault it is if it fails."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from executor.experiment import Execution, Outcome
from executor.imports import check_source
from orchestrator.errors import UsageProblem
from orchestrator.lab_setup import Lab
from orchestrator.mending import experiment_of, mend
from orchestrator.single import Watch, run_single
from results.store import SUMMARY
from results.summary import Summary, execution_of, final_implementation

_MAX_SUMMARY = 256 << 20
Fault = Literal["none", "code", "environment", "unknown"]


@dataclass(frozen=True)
class Replayed:
    """What came of a replay."""

    recorded: str
    """How it ended then."""
    fault: Fault
    why: str
    execution: Execution | None
    """None when the code was not run."""
    folder: Path | None


def read_recorded(path: Path) -> Summary:
    """The summary in a sprint's folder, or in a file. Raises UsageProblem."""
    file = path / SUMMARY if path.is_dir() else path
    try:
        with file.open("rb") as opened:
            data = json.loads(opened.read(_MAX_SUMMARY))
    except OSError as error:
        raise UsageProblem(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UsageProblem(f"{file} is not JSON") from None
    if not isinstance(data, dict):
        raise UsageProblem(f"{file} is not a sprint's summary")
    return data


def replay(summary: Summary, open_lab: Callable[[], Lab], results: Path, watch: Watch, seed: int = 0) -> Replayed:
    """Runs the recorded code. Raises UsageProblem where there is none."""
    then = _then(summary)
    part = final_implementation(summary)
    code = part.get("code")
    if not isinstance(code, str) or not code.strip():
        raise UsageProblem("the sprint has no code on record")
    mended = mend(code)
    report = check_source(mended.code)
    if report.error is not None:
        where = f" (line {report.line})" if report.line else ""
        return Replayed(then, "code", f"it does not parse{where}: {report.error}", None, None)
    stated = part.get("dependencies")
    names = [name for name in stated if isinstance(name, str)] if isinstance(stated, list) else []
    lab = open_lab()
    experiment = experiment_of(mended, report, names, lab.flavour, seed)
    execution, folder = run_single(lab, experiment, report.imports, results, watch)
    fault, why = fault_of(execution)
    return Replayed(then, fault, why, execution, folder)


def _then(summary: Summary) -> str:
    execution = execution_of(summary)
    if not execution:
        return "not run"
    if execution.get("success") is True:
        return "completed"
    said = execution.get("message") or execution.get("error") or _last_line(str(execution.get("stderr") or ""))
    return f"failed: {said}" if said else "failed"


_ENVIRONMENT = re.compile(
    r"^(?:[\w.]*\.)?(?:ModuleNotFoundError|FileNotFoundError|NotADirectoryError|PermissionError|ConnectionError|"
    r"Connection\w*Error|URLError|HTTPError|gaierror|TimeoutError|MaxRetryError|NewConnectionError|SSLError|"
    r"ProxyError|BrokenPipeError|BlockingIOError|MemoryError|OutOfMemoryError)\b"
    r"|\[Errno (?:-\d+|11|12|13|24|28|30|101|111)\]|Dataset not found|Error downloading|No CUDA|CUDA (?:error|driver|is not)"
    r"|not compiled with CUDA|cannot open shared object|can't start new thread",
)
_LIMITS = {
    Outcome.TIMEOUT,
    Outcome.OOM,
    Outcome.OUTPUT_LIMIT,
    Outcome.GPU_MEMORY,
    Outcome.DENIED,
    Outcome.INFRASTRUCTURE,
}


def fault_of(execution: Execution) -> tuple[Fault, str]:
    """Whose fault an end is, and why.

    What the environment lacks or forbids (modules, files, a network, devices, time, memory) is the environment's; any
    other exception is the code's own.
    """
    if execution.success:
        return "none", "it completes here"
    if execution.outcome is Outcome.CANCELLED:
        return "unknown", "it was interrupted"
    if execution.outcome in _LIMITS or execution.started_at is None:
        return "environment", execution.message
    last = _last_line(execution.stderr)
    if _ENVIRONMENT.search(last):
        return "environment", last
    return "code", last or execution.message


def _last_line(text: str) -> str:
    """The line of a traceback that names the exception."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b", line)]
    return (named or lines or [""])[-1][:300]
