"""What a run costs while it runs: a training step inside beside the same step bare, the supervisor's own CPU time, and a
gigabyte of output."""

import json
import os
import resource
import statistics
import subprocess
import time
from pathlib import Path

from benchmarks.containers import FirstLine, backends
from executor.backends.base import Backend
from executor.executor import Executor
from executor.experiment import Experiment
from policies.audit import AuditLog
from policies.decision import Request
from policies.model import load_policy
from policies.state import cache_dir
from sandbox_images.environment import environment

_STEPS = """
import json, time
import torch
torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.Linear(512, 256))
optimizer = torch.optim.AdamW(model.parameters())
data = torch.randn(64, 256)
def step():
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(data), data).backward()
    optimizer.step()
for _ in range(50):
    step()
times = []
for _ in range(400):
    began = time.perf_counter()
    step()
    times.append(time.perf_counter() - began)
print(json.dumps(sorted(times)[len(times) // 2]))
"""
_GIGABYTE = """
import os
block = (b"x" * 99 + b"\\n") * 10_000
for _ in range(1000):
    left = memoryview(block)
    while left:
        left = left[os.write(1, left):]
"""


def measure(state: Path, rounds: int, quiet_s: float = 20.0) -> dict[str, dict[str, float]]:
    """A step's median seconds inside and bare and their ratio, the supervisor's share of a core, output in MB/s."""
    found: dict[str, dict[str, float]] = {}
    everywhere = backends(state)
    steps: dict[str, list[float]] = {name: [] for name in ("bare", *(backend.name for backend in everywhere))}
    for _ in range(rounds):
        steps["bare"].append(_bare())
        for backend in everywhere:
            steps[backend.name].append(float(json.loads(_run(state, backend, _STEPS).said)))
    for name, times in steps.items():
        found[f"step/{name}"] = {"median_s": round(statistics.median(times), 7), "n": rounds}
    for backend in everywhere:
        ratios = [inside / bare for inside, bare in zip(steps[backend.name], steps["bare"], strict=True)]
        found[f"step/{backend.name}/ratio"] = {"median": round(statistics.median(ratios), 4), "n": rounds}
        before = time.process_time()
        _run(state, backend, f"import time; time.sleep({quiet_s})")
        share = (time.process_time() - before) / quiet_s
        found[f"supervisor/{backend.name}/core"] = {"share": round(share, 5), "n": 1}
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        _run(state, backend, _GIGABYTE, 2 << 30)
        seconds = time.perf_counter() - began
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
        found[f"output/{backend.name}"] = {"mb_per_s": round(1000 / seconds, 1), "grown_mib": grown >> 10, "n": 1}
    return found


def _bare() -> float:
    """In the sandbox's environment, without the sandbox."""
    python = environment(cache_dir(), lambda text: None).path / "bin/python3"
    found = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "2"}
    return float(json.loads(subprocess.run([python, "-c", _STEPS], stdout=-1, check=True, env=found).stdout))


class _Said(FirstLine):
    """The beginning of what was printed."""

    said = b""

    def log(self, stream: str, data: bytes) -> None:
        if len(self.said) < 1000:
            self.said += data


def _run(state: Path, backend: Backend, code: str, output: int | None = None) -> _Said:
    policy = load_policy("default")
    if output is not None:
        policy = policy.model_copy(update={"limits": policy.limits.model_copy(update={"output": output})})
    sink = _Said()
    execution = Executor(backend, AuditLog(state / "running.jsonl")).run(Experiment(code=code), policy, Request(), sink)
    assert execution.success, execution.message
    return sink
