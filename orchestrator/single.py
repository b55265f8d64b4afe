"""One experiment without agents, in a folder of its own."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from executor.experiment import Execution, Experiment, Sink
from orchestrator.lab_setup import Lab
from results.host import HOST, host_facts
from results.store import EXECUTION, Store
from sandbox_images.lock import requirements_text

if TYPE_CHECKING:
    from results.export.live import Note, Tracking

Watch = Callable[[Sink], Sink]
"""Puts somebody who looks between an execution and its folder."""


def run_single(
    lab: Lab,
    experiment: Experiment,
    imports: Iterable[str],
    results: Path,
    watch: Watch,
    tracking: "Tracking | None" = None,
    note: "Note" = lambda text: None,
) -> tuple[Execution, Path]:
    """Runs it, and returns its record and its folder. Raises StoreError, and whatever the executor raises."""
    with Store(results).new("exec") as folder:
        folder.write_text("experiment.py", experiment.code)
        with ExitStack() as stack:
            sink, told = watch(folder), None
            if tracking is not None:
                from results.export.live import Following

                told = stack.enter_context(Following(tracking, folder.path, {}, note))
                sink = told.attempt(sink, experiment.code)
            execution = lab.executor.run(experiment, lab.policy, lab.request, sink)
            if told is not None:
                told.ended(execution)
            folder.close()
            folder.write_json(HOST, host_facts())
            folder.write_json(EXECUTION, execution.as_json())
            # What reads and draws numbers takes a while to load, and the experiment shall not wait for it.
            from results.curves import draw_run
            from results.extract import extract

            extract(folder.path)
            draw_run(folder.path)
        folder.write_text("requirements.txt", requirements_text(imports, execution.packages, lab.flavour))
    return execution, folder.path
