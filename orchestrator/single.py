"""One experiment without agents, in a folder of its own."""

from collections.abc import Callable, Iterable
from pathlib import Path

from executor.experiment import Execution, Experiment, Sink
from orchestrator.lab_setup import Lab
from results.curves import draw_curves
from results.metrics import read_records
from results.store import EXECUTION, Store
from sandbox_images.lock import requirements_text

Watch = Callable[[Sink], Sink]
"""Puts somebody who looks between an execution and its folder."""


def run_single(
    lab: Lab, experiment: Experiment, imports: Iterable[str], results: Path, watch: Watch
) -> tuple[Execution, Path]:
    """Runs it, and returns its record and its folder. Raises StoreError, and whatever the executor raises."""
    with Store(results).new("exec") as folder:
        folder.write_text("experiment.py", experiment.code)
        execution = lab.executor.run(experiment, lab.policy, lab.request, watch(folder))
        folder.close()
        folder.write_json(EXECUTION, execution.as_json())
        draw_curves(read_records(folder.path / "metrics.jsonl"), folder.path / "curves.png")
        folder.write_text("requirements.txt", requirements_text(imports, execution.packages))
    return execution, folder.path
