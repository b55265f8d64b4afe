"""`make bench`: everything that is measured, as tables on the terminal and in benchmarks/latest.json."""

import json
import sys
import tempfile
from pathlib import Path

from benchmarks import audit, containers, running, starting, throughput
from benchmarks.figures import Figures
from benchmarks.targets import compare

_LATEST = Path(__file__).parent / "latest.json"


def measure(rounds: int) -> Figures:
    """Everything. rounds: of how many each figure is the median; but one gigabyte of output is enough."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        return {
            **starting.measure(state, rounds),
            **containers.measure(rounds),
            **throughput.measure(state, rounds),
            **running.measure(state, rounds),
            **audit.measure(rounds),
        }


def main(rounds: int) -> None:
    """Measures, writes, prints."""
    found = measure(rounds)
    _LATEST.write_text(json.dumps(found, indent=1) + "\n")
    for name, figures in found.items():
        print(f"{name:45} {', '.join(f'{what} {value:g}' for what, value in figures.items())}")
    print()
    for line in compare(found):
        print(line)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
