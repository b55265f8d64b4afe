"""How fast the audit log is written and verified."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from policies.audit import AuditLog
from policies.audit_check import verify

_BATCH = 100
_PADDING = "x" * 280  # makes records of about 500 bytes


def measure(records: int) -> dict[str, dict[str, float]]:
    """Records per second: in batches of a hundred, one by one (each synced to the disk twice), and verified."""
    with tempfile.TemporaryDirectory() as folder:
        log = AuditLog(Path(folder) / "audit.jsonl")
        batch = [("event", {"execution": f"{n:016x}", "text": _PADDING}) for n in range(_BATCH)]
        batches, single = records // _BATCH, max(20, records // 200)
        batched = _rate(records, lambda: [log.append_all(batch) for _ in range(batches)])
        alone = _rate(single, lambda: [log.append("event", text=_PADDING) for _ in range(single)])
        verified = _rate(records + single, lambda: verify(log.path))
        assert verify(log.path).ok
    return {
        f"audit/{name}": {"per_s": round(rate, 1), "n": count}
        for name, rate, count in (
            ("batched", batched, records),
            ("single", alone, single),
            ("verified", verified, records + single),
        )
    }


def _rate(count: int, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)
