"""What a run costs while it runs: a training step inside beside the same step bare, the supervisor's own CPU time, and a
gigabyte of output."""

import json
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil

from benchmarks.containers import FirstLine, backends
from benchmarks.figures import Figures, figure
from executor.backends.base import Backend, Passed
from executor.executor import Executor
from executor.experiment import Execution, Experiment
from executor.job import gpu_environment, job_of
from policies.audit import AuditLog
from policies.decision import Request
from policies.model import load_policy
from policies.state import cache_dir
from sandbox_images.environment import environment

# One step in twenty is quicker than what it prints: those that a neighbour disturbed say nothing of the sandbox.
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
for _ in range(300):
    began = time.perf_counter()
    step()
    times.append(time.perf_counter() - began)
print(json.dumps(sorted(times)[len(times) // 20]))
"""
_OUTPUT = """
import os
block = (b"x" * 99 + b"\\n") * 10_000
for _ in range({}):
    left = memoryview(block)
    while left:
        left = left[os.write(1, left):]
"""
_GIGABYTE, _PART = 1000, 128
"""Blocks of a million bytes."""
_WINDOW = 1.0
"""Seconds over which the supervisor's CPU time is taken once: about the time between two of its looks at a run."""
_LOOK = 0.02
"""Seconds between two looks at this process's memory."""


class _Said(FirstLine):
    """The beginning of what was printed."""

    said = b""

    def log(self, stream: str, data: bytes) -> None:
        super().log(stream, data)
        if len(self.said) < 1000:
            self.said += data


def measure(state: Path, rounds: int) -> Figures:
    """Everything of this file, on every backend."""
    return {
        **steps(state, rounds),
        **{name: found for backend in backends(state) for name, found in _supervising(state, backend, rounds)},
    }


def steps(state: Path, rounds: int) -> Figures:
    """A training step's seconds, bare and inside, and the ratios of the pairs."""
    inside: dict[str, Callable[[], float]] = {one.name: partial(_inside, state, one) for one in backends(state)}
    ways = {"bare": _bare(state), **inside}
    found: dict[str, list[float]] = {name: [] for name in ways}
    order = deque(ways)
    for _ in range(rounds):
        for name in order:
            found[name].append(ways[name]())
        order.rotate()
    return {
        **{f"step/{name}": figure("s", times) for name, times in found.items()},
        **{f"step/{name}/ratio": figure("ratio", _ratios(found[name], found["bare"])) for name in inside},
    }


def _ratios(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ones, others, strict=True)]


def _inside(state: Path, backend: Backend) -> float:
    return float(json.loads(_run(state, backend, _STEPS)[1].said))


def _bare(state: Path) -> Callable[[], float]:
    """In the sandbox's environment, with the variables of a job, without the sandbox."""
    python = environment(cache_dir(), lambda text: None).path / "bin/python3"
    policy = load_policy("default")
    decision = Executor(backends(state)[0], AuditLog(state / "running.jsonl")).preflight(policy, Request())
    told = gpu_environment((), decision.limits.gpu_memory, Passed())
    variables = job_of(Experiment(code=_STEPS), decision, policy.environment, told)["environment"]
    command = [str(python), "-uc", _STEPS]
    return lambda: float(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=variables).stdout))


def _supervising(state: Path, backend: Backend, rounds: int) -> Iterator[tuple[str, dict[str, float]]]:
    """The supervisor's share of a core while an experiment is quiet; the seconds and the MiB that a gigabyte of output
    costs, and MB per second."""
    yield f"supervisor/{backend.name}", figure("share", _quiet(state, backend, rounds))
    with _memory() as grown:
        execution, _ = _run(state, backend, _OUTPUT.format(_GIGABYTE))
    yield f"output/{backend.name}/gigabyte", figure("s", [execution.timings.run_s])
    yield f"output/{backend.name}/memory", figure("mib", [grown() / (1 << 20)])
    parts = [_run(state, backend, _OUTPUT.format(_PART))[0] for _ in range(rounds)]
    yield f"output/{backend.name}/bandwidth", figure("mb_per_s", [_PART / part.timings.run_s for part in parts])


def _quiet(state: Path, backend: Backend, rounds: int) -> list[float]:
    """Shares of a core, from window to window of one run."""
    code = f"import time; print(1); time.sleep({rounds * _WINDOW + 2})"
    sink, shares = _Said(), []
    thread = threading.Thread(target=_run, args=(state, backend, code, sink))
    thread.start()
    while not sink.at and thread.is_alive():
        time.sleep(0.1)
    time.sleep(0.5)  # what the start set going has come to rest
    for _ in range(rounds):
        before, began = time.process_time(), time.perf_counter()
        time.sleep(_WINDOW)
        shares.append((time.process_time() - before) / (time.perf_counter() - began))
    assert thread.is_alive(), "the experiment ended before it was measured"
    thread.join()
    return shares


@contextmanager
def _memory() -> Iterator[Callable[[], int]]:
    """By how many bytes this process's memory grew at most, looked at again and again."""
    process = psutil.Process()
    before = process.memory_info().rss
    seen, over = [before], threading.Event()

    def look() -> None:
        while not over.wait(_LOOK):
            seen.append(process.memory_info().rss)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield lambda: max(seen) - before
    finally:
        over.set()
        thread.join()


def _run(state: Path, backend: Backend, code: str, sink: _Said | None = None) -> tuple[Execution, _Said]:
    policy = load_policy("default")
    policy = policy.model_copy(update={"limits": policy.limits.model_copy(update={"output": 2 << 30})})
    sink = sink or _Said()
    execution = Executor(backend, AuditLog(state / "running.jsonl")).run(Experiment(code=code), policy, Request(), sink)
    assert execution.success, execution.message
    return execution, sink
