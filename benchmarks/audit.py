"""How fast the audit log is written and verified."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.figures import Figures, figure
from policies.audit import AuditLog
from policies.audit_check import verify

_BATCH = 100
_PADDING = "x" * 280  # makes records of about 500 bytes


def measure(rounds: int, batches: int = 50, single: int = 25) -> Figures:
    """Records per second: in batches of a hundred, one by one (each synced to the disk twice), and verified."""
    batch = [("event", {"execution": f"{n:016x}", "text": _PADDING}) for n in range(_BATCH)]
    rates: dict[str, list[float]] = {"batched": [], "single": [], "verified": []}
    with tempfile.TemporaryDirectory() as folder:
        log = AuditLog(Path(folder) / "audit.jsonl")
        for number in range(1, rounds + 1):
            written = number * (batches * _BATCH + single)
            rates["batched"].append(_rate(batches * _BATCH, lambda: [log.append_all(batch) for _ in range(batches)]))
            rates["single"].append(_rate(single, lambda: [log.append("event", text=_PADDING) for _ in range(single)]))
            rates["verified"].append(_rate(written, lambda: verify(log.path)))
        assert verify(log.path).ok
    return {f"audit/{name}": figure("per_s", all_of) for name, all_of in rates.items()}


def _rate(count: int, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)
