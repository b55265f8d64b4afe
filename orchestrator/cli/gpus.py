"""`labsandbox gpus`: who uses which GPU, whether through labsandbox or not, and who waits."""

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from executor.gpus.lending import Gpus
from executor.gpus.survey import DeviceState, Standing, Survey, survey
from orchestrator.cli import options
from orchestrator.cli.status import INFRASTRUCTURE
from orchestrator.cli.terminal import console, note, one_line, print_json

_EVERY = 1.0


def gpus(
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show this machine's GPUs: what is on them, whose it is, and the queue."""
    lent = Gpus()
    seen = survey(lent)
    if watch and as_json:
        _watch_json(lent)
    elif as_json:
        print_json(asdict(seen))
    elif seen.problem:
        note(f"labsandbox: {seen.problem}")
    elif watch:
        _watch(lent)
    else:
        console().print(_shown(seen))
    raise typer.Exit(INFRASTRUCTURE if seen.problem else 0)


def _watch_json(lent: Gpus) -> None:
    """A line of JSON each second, until Ctrl-C."""
    while True:
        print(json.dumps(asdict(survey(lent))), flush=True)
        time.sleep(_EVERY)


def _watch(lent: Gpus) -> None:
    with Live(_shown(survey(lent)), console=console(), auto_refresh=False) as live:
        while True:
            time.sleep(_EVERY)
            live.update(_shown(survey(lent)), refresh=True)


def _shown(seen: Survey) -> Group:
    table = Table(
        Column("GPU", overflow="fold"),
        "memory",
        Column("busy", justify="right"),
        Column("draws", justify="right"),
        "who",
    )
    for state in seen.devices:
        table.add_row(*_row(state))
    head = f"driver {seen.driver or '?'}, CUDA {seen.cuda or '?'}"
    parts: list[RenderableType] = [Text(f"{head}: {seen.problem}" if seen.problem else head), table]
    if seen.queue:
        queue = Table(
            Column("place", justify="right"), "user", "wants", "waits", "execution", title="queue", title_justify="left"
        )
        for place, one in enumerate(seen.queue, 1):
            queue.add_row(str(place), one.user, f"{one.count} GPU(s)", f"{one.seconds:.0f} s", one.execution)
        parts.append(queue)
    return Group(*parts)


def _row(state: DeviceState) -> tuple[Text, ...]:
    device, reading = state.device, state.reading
    indent = "  " if device.parent else ""
    name = Text(f"{indent}{one_line(device.name)}\n{indent}{device.uuid}")
    if reading.problem:
        return name, Text("–"), Text("–"), Text("–"), Text(reading.problem)
    used = "–" if reading.memory is None else f"{_gib(reading.memory)} of {_gib(device.memory)} GiB"
    rate = "–" if reading.utilisation is None else f"{reading.utilisation:.0f} %"
    power = "–" if reading.power is None else f"{reading.power:.0f} W"
    heat = "" if reading.temperature is None else f"\n{reading.temperature:.0f} °C"
    return name, Text(used), Text(rate), Text(f"{power}{heat}"), Text(_who(state))


def _who(state: DeviceState) -> str:
    lines = [_lease(one) for one in state.leases]
    for process in state.processes:
        memory = "?" if process.memory is None else f"{_gib(process.memory)} GiB"
        where = "labsandbox" if process.execution else f"container {process.owner.container[:12]}"
        inside = f", {where}" if process.execution or process.owner.container else ""
        command = one_line(process.owner.command, 60) or "?"
        lines.append(f"{process.owner.user or '?'}: {command} (pid {process.pid}, {memory}{inside})")
    if state.device.sliced:
        lines.append("in MIG mode: its slices are lent")
    return "\n".join(lines) or "free"


def _lease(one: Standing) -> str:
    share = f", {_gib(one.share)} GiB of it" if one.share is not None else ""
    return f"lent to {one.user} for {one.seconds:.0f} s{share} ({one.execution})"


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f}"
