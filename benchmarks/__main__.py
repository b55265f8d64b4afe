"""`make bench`: everything that is measured, as a table on the terminal and in benchmarks/latest.json."""

import json
import sys
import tempfile
from pathlib import Path

from benchmarks import audit, containers, running, starting, throughput

_LATEST = Path(__file__).parent / "latest.json"
_TARGETS = {
    "labsandbox-oci/warm/torch/first_line": 0.015,
    "labsandbox-docker/warm/torch/first_line": 0.015,
    "labsandbox-oci/cold/print/first_line": 0.120,
    "labsandbox-oci/cold/print/gone": 0.180,
    "labsandbox-docker/cold/print/first_line": 0.300,
    "labsandbox-docker/cold/print/gone": 0.450,
    "start/help": 0.150,
}
"""Seconds at most."""
_RATES = {"labsandbox-oci/throughput": 15.0, "labsandbox-docker/throughput": 4.0, "audit/batched": 5000.0}
"""A second at least."""


def main(rounds: int) -> None:
    """Measures, prints, writes. rounds: how many times each way is taken."""
    few = max(1, rounds // 7)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        found = {
            **starting.measure(rounds),
            **containers.measure(rounds),
            **throughput.measure(state, 60, few),
            **running.measure(state, few),
            **audit.measure(100_000),
        }
    for name, figures in found.items():
        print(f"{name:45} {_words(figures):40} {_wanted(name, figures)}")
    plain = found.get("docker-run/cold/torch/first_line")
    warm = found["labsandbox-oci/warm/torch/first_line"]
    if plain is not None:
        ratio = plain["median_s"] / warm["median_s"]
        print(f"first line of `import torch`, docker run beside a warm container: {ratio:.0f} times (wanted: 50)")
    _LATEST.write_text(json.dumps(found, indent=1) + "\n")


def _words(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in figures.items())


def _wanted(name: str, figures: dict[str, float]) -> str:
    if name in _TARGETS:
        met = figures["median_s"] <= _TARGETS[name]
        return f"wanted: {_TARGETS[name]:g} s {'(met)' if met else '(NOT met)'}"
    if name in _RATES:
        met = figures["per_s"] >= _RATES[name]
        return f"wanted: {_RATES[name]:g} /s {'(met)' if met else '(NOT met)'}"
    return ""


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
