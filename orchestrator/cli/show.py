"""How an execution looks to a person."""

from pathlib import Path
from typing import TYPE_CHECKING

from executor.experiment import Execution, GpuUsage
from orchestrator.cli.terminal import console, note, one_line
from policies.units import format_limit, format_size
from results.readable import number

if TYPE_CHECKING:
    from rich.table import Table


def show_execution(execution: Execution, folder: Path | None) -> None:
    """A few lines on standard error: the log is on standard output, and a pipe must see nothing else there."""
    seconds = f"{execution.timings.run_s:.1f} s"
    note(f"{execution.outcome.value}: {execution.message} ({seconds}, {execution.backend}/{execution.runtime})")
    if (peak := execution.usage.peak_memory_bytes) is not None:
        note(f"used {execution.usage.cpu_s or 0:.1f} s of CPU, at most {format_size(peak)} of memory")
    for gpu in execution.usage.gpus:
        note(f"used {gpu_use(gpu)}")
    for reason in execution.watched.values():
        note(f"best effort: {reason}")
    if execution.artifacts:
        note(f"{len(execution.artifacts)} artifact(s), {format_size(sum(a.bytes for a in execution.artifacts))}")
    for line in execution.artifacts_skipped[:5]:
        note(f"not brought back: {line}")
    if folder is not None:
        from results.extract import told
        from results.series import read_series
        from results.store import EXTRACTED

        if (folder / EXTRACTED).exists() and (source := told(read_series(folder))):
            note(source)
        note(f"results in {folder}")


def gpu_use(gpu: GpuUsage) -> str:
    """What a device was used for, as far as its driver tells."""
    busy = None if gpu.mean_utilisation is None else f"{gpu.mean_utilisation:.0f} % busy"
    energy = None if gpu.energy_j is None else f"{gpu.energy_j:.0f} J"
    shared = "shared with others" if gpu.shared else None
    told = [part for part in (busy, f"at most {format_size(gpu.peak_memory_bytes)}", energy, shared) if part]
    return f"{one_line(gpu.name)} ({gpu.uuid[:12]}): {', '.join(told)}"


def limits_table(execution_limits: dict[str, dict[str, object]]) -> "Table":
    """Name, effective, observed and keeper of every limit, from an execution's JSON."""
    from rich.table import Table

    table = Table("limit", "effective", "observed", "held by", title="Limits", title_justify="left")
    for name, limit in execution_limits.items():
        table.add_row(
            name,
            format_limit(name, number(limit.get("effective"))),
            format_limit(name, number(limit.get("observed"))),
            one_line(str(limit.get("enforced_by", ""))),
        )
    return table


def show_table(table: "Table") -> None:
    """To standard output."""
    console().print(table)
