"""How many short experiments a second go through, each in a container of its own, with a pool that refills."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.containers import FirstLine, backends
from executor.backends.base import Backend
from executor.executor import Executor
from executor.experiment import Experiment
from executor.places import Places, Room
from executor.warm import Pool
from policies.audit import AuditLog
from policies.decision import Request
from policies.model import load_policy


def measure(state: Path, runs: int, rounds: int) -> dict[str, dict[str, float]]:
    """Runs per second of `print(1)`: `runs` of them by four that ask at once, medians over `rounds`."""
    return {
        f"labsandbox-{backend.name}/throughput": _figure([_rate(backend, state, runs) for _ in range(rounds)])
        for backend in backends(state)
    }


def _figure(rates: list[float]) -> dict[str, float]:
    return {"per_s": round(statistics.median(rates), 2), "n": len(rates)}


def _rate(backend: Backend, state: Path, runs: int) -> float:
    audit, policy, request = AuditLog(state / "throughput.jsonl"), load_policy("default"), Request()
    pool = Pool(audit)
    executor = Executor(backend, audit, pool=pool, places=Places(Room.here(), state / "places", state))
    experiment = Experiment(code="print(1)")
    executor.warm_up(experiment, policy, request)
    try:
        began = time.perf_counter()
        with ThreadPoolExecutor(4) as threads:
            done = list(threads.map(lambda _: executor.run(experiment, policy, request, FirstLine()), range(runs)))
        seconds = time.perf_counter() - began
    finally:
        pool.close()
    assert all(execution.success for execution in done)
    return runs / seconds
