"""How fast the audit log is written and verified. `make bench-audit`."""

import tempfile
import time
from pathlib import Path

from policies.audit import AuditLog
from policies.audit_check import verify

_RECORDS = 100_000
_BATCH = 100
_SINGLE = 500
_PADDING = "x" * 280  # makes records of about 500 bytes


def main() -> None:
    """Prints records per second: in batches, one by one (each synced to the disk twice), and verified."""
    with tempfile.TemporaryDirectory() as folder:
        log = AuditLog(Path(folder) / "audit.jsonl")
        batch = [("event", {"execution": f"{n:016x}", "text": _PADDING}) for n in range(_BATCH)]
        batched = _rate(_RECORDS, lambda: [log.append_all(batch) for _ in range(_RECORDS // _BATCH)])
        size = log.path.stat().st_size / _RECORDS
        single = _rate(_SINGLE, lambda: [log.append("event", text=_PADDING) for _ in range(_SINGLE)])
        verified = _rate(_RECORDS + _SINGLE, lambda: verify(log.path))
        assert verify(log.path).ok
    print(f"records of {size:.0f} bytes")
    print(f"appended, {_BATCH} a commit: {batched:>9,.0f} records/s  (wanted:   5,000)")
    print(f"appended, one a commit: {single:>11,.0f} records/s")
    print(f"verified: {verified:>25,.0f} records/s  (wanted: 100,000)")


def _rate(count: int, work: object) -> float:
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
