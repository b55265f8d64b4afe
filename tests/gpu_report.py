"""Runs the tests that need a GPU and keeps what they measured in docs/gpu-report.md: `make test-gpu`."""

import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from executor.gpus.nvml import Nvml

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "docs" / "gpu-report.md"


def main() -> int:
    machine = Nvml().machine
    if machine.problem:
        print(f"labsandbox: the tests that need a GPU cannot run: {machine.problem}", file=sys.stderr)
        return 4
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", f"--junit-xml={results}", "-o", "junit_family=xunit1"]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if not results.exists():
            print(
                f"labsandbox: the tests did not run (pytest ended with {status}); {REPORT.name} is as it was",
                file=sys.stderr,
            )
            return status or 1
        cases = list(ElementTree.parse(results).iter("testcase"))
    lines = [
        "# GPU report",
        "",
        "Made by `make test-gpu`, which runs the tests that need a device; nothing here was written by hand.",
        "",
        f"- date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"- driver {machine.driver}, CUDA {machine.cuda}",
        *(f"- {device.name}, {device.memory / (1 << 30):.1f} GiB" for device in machine.usable),
        "",
        "| promise | result | measured |",
        "|---|---|---|",
        *map(_row, cases),
    ]
    REPORT.write_text("\n".join(lines) + "\n")
    print(f"the report is in {REPORT.relative_to(ROOT)}")
    return status


def _row(case: ElementTree.Element) -> str:
    promise = str(case.get("name")).removeprefix("test_").replace("_", " ")
    bad = next((kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None), None)
    figures = "; ".join(f"{one.get('name')}: {one.get('value')}" for one in case.iter("property"))
    return f"| {promise} | {bad or 'holds'} | {figures.replace('|', '/') or '–'} |"


if __name__ == "__main__":
    sys.exit(main())
