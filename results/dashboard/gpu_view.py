"""The machine's GPUs as rows of plain text: for the page, and for the script that keeps it up to date."""

from collections.abc import Callable
from typing import Any

from executor.gpus.survey import DeviceState, Standing, Survey
from results.readable import line, seconds, size

LookAtGpus = Callable[[], Survey]


def gpu_view(seen: Survey) -> dict[str, Any]:
    """Driver, problem, devices and queue; every cell a text."""
    driver = f"driver {line(seen.driver, 40)}, CUDA {line(seen.cuda, 40) or '?'}" if seen.devices else ""
    return {
        "problem": line(seen.problem, 400),
        "driver": driver,
        "devices": [_device(state) for state in seen.devices],
        "queue": [
            [str(place), line(one.user, 40), f"{one.count} GPU(s)", seconds(one.seconds), line(one.execution, 80)]
            for place, one in enumerate(seen.queue, 1)
        ],
    }


def _device(state: DeviceState) -> list[str]:
    device, reading = state.device, state.reading
    name = f"{'slice: ' if device.parent else ''}{line(device.name, 80)}\n{line(device.uuid, 80)}"
    if reading.problem:
        return [name, "–", "–", "–", line(reading.problem, 200)]
    used = "–" if reading.memory is None else f"{size(reading.memory)} of {size(device.memory)}"
    rate = "–" if reading.utilisation is None else f"{reading.utilisation:.0f} %"
    power = "–" if reading.power is None else f"{reading.power:.0f} W"
    heat = "" if reading.temperature is None else f", {reading.temperature:.0f} °C"
    return [name, used, rate, f"{power}{heat}", _who(state)]


def _who(state: DeviceState) -> str:
    lines = [_lease(one) for one in state.leases]
    for process in state.processes:
        owner = process.owner
        where = (
            ", labsandbox" if process.execution else f", container {owner.container[:12]}" if owner.container else ""
        )
        memory = size(process.memory) if process.memory is not None else "?"
        lines.append(
            f"{line(owner.user, 40) or '?'}: {line(owner.command, 60) or '?'} (pid {process.pid}, {memory}{where})"
        )
    if state.device.sliced:
        lines.append("in MIG mode: its slices are lent")
    return "\n".join(lines) or "free"


def _lease(one: Standing) -> str:
    share = f", {size(one.share)} of it" if one.share is not None else ""
    return f"lent to {line(one.user, 40)} for {seconds(one.seconds)}{share} ({line(one.execution, 80)})"
