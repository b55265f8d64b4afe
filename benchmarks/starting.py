"""What the command line costs before it does anything."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

_NOTHING = str(Path(__file__).with_name("__init__.py"))
_COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "help": [sys.executable, "-m", "orchestrator", "--help"],
    "exec-help": [sys.executable, "-m", "orchestrator", "exec", "--help"],
    "exec-refused": [sys.executable, "-m", "orchestrator", "exec", "--policy", "no-such", "--backend", "oci", _NOTHING],
}


def _as_installed() -> dict[str, str]:
    """The environment, in which Python keeps what it has compiled."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each command, whole."""
    times: dict[str, list[float]] = {name: [] for name in _COMMANDS}
    for number in range(rounds + 1):
        for name, command in _COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(
                command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_as_installed()
            )
            if number:
                times[name].append(time.perf_counter() - began)
    return {
        f"start/{name}": {"median_s": round(statistics.median(all_of), 4), "n": len(all_of)}
        for name, all_of in times.items()
    }
