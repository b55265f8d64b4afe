"""The machine on which a run went, put on record when it does: a report may be written elsewhere, and years later."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HOST = "host.json"
"""Of a single execution; a sprint has the same in its summary."""
UNKNOWN = "not recorded"
_MOST = 1 << 16
_CPU = "model name"


def host_facts() -> dict[str, str | int]:
    """This machine's processor, cores, memory (bytes), kernel, Python and platform."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count() or 0,
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _processor() -> str:
    """The model as Linux tells it: of the first core, before the many others that a large machine lists."""
    try:
        with Path("/proc/cpuinfo").open("rb") as file:
            lines = file.read(_MOST).decode(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(_CPU)]
    return names[0] if names else platform.machine()


def host_told(facts: Any) -> str:
    """What is on record of a host, on one line; `UNKNOWN` where nothing is. The record may be of any shape."""
    if not isinstance(facts, Mapping):
        return UNKNOWN
    cores, memory = facts.get("cores"), facts.get("memory")
    found = [
        facts.get("cpu"),
        f"{cores} cores" if cores else "",
        f"{memory / 2**30:.1f} GiB of memory" if isinstance(memory, int) and memory > 0 else "",
        facts.get("platform") or facts.get("kernel"),
        f"labsandbox on Python {facts['python']}" if facts.get("python") else "",
    ]
    return ", ".join(str(one)[:200] for one in found if one) or UNKNOWN
