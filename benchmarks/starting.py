"""What the command line costs before it does anything: `--help` whole, and `exec` until its request."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.containers import backends
from benchmarks.figures import Figures, figure
from executor.backends.base import Backend

_LABSANDBOX = [sys.executable, "-m", "orchestrator"]


def measure(state: Path, rounds: int) -> Figures:
    """Seconds: Python alone, `--help`, and from the start of `exec FILE` until it asks the executor to run that: it has just
    made its folder then, and written into it what it is going to run. All take turns."""
    program = state / "one.py"
    program.write_text("print(1)\n")
    ways: dict[str, Callable[[], float]] = {
        "python": partial(_whole, [sys.executable, "-c", "pass"]),
        "help": partial(_whole, [*_LABSANDBOX, "--help"]),
        **{f"exec-{backend.name}": partial(_until_request, state, program, backend) for backend in backends(state)},
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            seconds = way()
            if number:  # the first fills caches
                times[name].append(seconds)
    return {f"start/{name}": figure("s", all_of) for name, all_of in times.items()}


def _whole(command: list[str], more: dict[str, str] | None = None) -> float:
    # As installed: Python keeps what it has compiled.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, env={**environment, **(more or {})})
    seconds = time.perf_counter() - began
    assert done.returncode == 0, done.stderr.decode()
    return seconds


def _until_request(state: Path, program: Path, backend: Backend) -> float:
    with tempfile.TemporaryDirectory(dir=state) as results:
        began = time.time()
        _whole(
            [*_LABSANDBOX, "exec", str(program), "--backend", backend.name, "--results", results],
            {"LABSANDBOX_STATE_DIR": str(state / "start"), "LABSANDBOX_LOCK_DIR": str(state / "locks")},
        )
        written = next(Path(results).glob("exec_*/experiment.py"))
        return written.stat().st_mtime - began
