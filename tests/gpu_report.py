"""Runs the tests that need a GPU and keeps what they measured in docs/gpu-report.md: `make test-gpu`.

The report is written anew after every test, so that what a machine showed before its time was up is kept.
"""

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from executor.experiment import Outcome
from executor.gpus.devices import Machine
from executor.gpus.lending import Gpus
from executor.gpus.nvml import Nvml
from tests.gpu_bench import FIRST_KERNEL, Bench

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "docs" / "gpu-report.md"


class Report:
    """What pytest tells of each test, as a table in a file."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._began = datetime.now(UTC)
        self._tests = 0
        self._rows: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Called by pytest."""
        self._tests = len(session.items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest: after a test's preparation, after the test, and after what it cleans up."""
        if report.when == "call" or not report.passed:
            self._rows.append(_row(report))
            self._write()

    def _write(self) -> None:
        machine = self._machine
        lines = [
            "# GPU report",
            "",
            "Made by `make test-gpu`, which runs the tests that need a device; nothing here was written by hand.",
            "",
            f"- date: {self._began:%Y-%m-%d %H:%M} UTC",
            f"- driver {machine.driver}, CUDA {machine.cuda}",
            *(f"- {device.name}, {device.memory / (1 << 30):.1f} GiB" for device in machine.usable),
            f"- {len(self._rows)} of {self._tests} tests came to an end",
            "",
            "| promise | result | seconds | measured |",
            "|---|---|---|---|",
            *self._rows,
        ]
        REPORT.write_text("\n".join(lines) + "\n")


def _row(report: pytest.TestReport) -> str:
    promise = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
    result = {"passed": "holds", "failed": "does not hold", "skipped": "skipped"}[report.outcome]
    if report.when != "call" and report.failed:
        result = f"{report.when} failed"
    measured = "; ".join(f"{name}: {value}" for name, value in report.user_properties)
    if report.skipped and isinstance(report.longrepr, tuple):
        measured = str(report.longrepr[2]).removeprefix("Skipped: ")
    return f"| {promise} | {result} | {report.duration:.0f} | {_cell(measured) or '–'} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")


def problem() -> str | None:
    """Why no test can show anything here: said at once, instead of after each has waited for what does not come."""
    machine = Nvml().machine
    if machine.problem:
        return machine.problem
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), lambda name, value: None, Gpus(Nvml(), Path(folder) / "locks"))
        # The first run may fetch the packages for GPUs, which are gigabytes.
        for what, code, gpus in (("any program", "print(1)", 0), ("a program with the device", FIRST_KERNEL, 1)):
            execution = bench.run(code, gpus=gpus)
            if execution.outcome is not Outcome.COMPLETED:
                return f"{what} ends as {execution.outcome}: {execution.message} {execution.stderr[-2000:]}".strip()
    return None


def main() -> int:
    """Status: pytest's, or 4 where no test can show anything."""
    if found := problem():
        print(f"labsandbox: the tests that need a GPU cannot run: {found}", file=sys.stderr)
        return 4
    options = ["-m", "gpu", "--durations=0", str(ROOT / "tests" / "test_gpu_hardware.py")]
    status = pytest.main(options, plugins=[Report(Nvml().machine)])
    print(f"the report is in {REPORT.relative_to(ROOT)}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
