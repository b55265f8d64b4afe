"""How many short experiments a second go through, each in a container of its own, with a pool that refills."""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from benchmarks.containers import FirstLine, backends
from benchmarks.figures import Figures, figure
from executor.backends.base import Backend
from executor.executor import Executor
from executor.experiment import Experiment
from executor.places import Places, Room
from executor.warm import Pool
from policies.audit import AuditLog
from policies.decision import Request
from policies.model import load_policy


def measure(state: Path, rounds: int, runs: int = 20) -> Figures:
    """Runs of `print(1)` per second, by four that ask at once: a round is `runs` of them that ended one after another."""
    return {
        f"labsandbox-{backend.name}/throughput": figure("per_s", _rates(backend, state, rounds, runs))
        for backend in backends(state)
    }


def _rates(backend: Backend, state: Path, rounds: int, runs: int) -> list[float]:
    """Without a pause between rounds, and without the first runs: these find containers that waited for them."""
    audit, policy, request = AuditLog(state / "throughput.jsonl"), load_policy("default"), Request()
    pool = Pool(audit)
    executor = Executor(backend, audit, pool=pool, places=Places(Room.here(), state / "places", state))
    experiment = Experiment(code="print(1)")
    executor.warm_up(experiment, policy, request)

    def one(_: int) -> float:
        execution = executor.run(experiment, policy, request, FirstLine())
        assert execution.success, execution.message
        return time.perf_counter()

    try:
        with ThreadPoolExecutor(4) as threads:
            ended = sorted(threads.map(one, range((rounds + 1) * runs)))
    finally:
        pool.close()
    return [runs / (last - first) for first, last in pairwise(ended[runs - 1 :: runs])]
