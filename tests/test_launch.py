"""`lab.launch`: one process for each device. On machines without GPUs the same path runs with gloo, in real containers."""

import time

import pytest

from executor.experiment import MetricRecord, Outcome
from tests.conftest import Bench

SUM = """
import os
import lab, torch
from torch import distributed

print("once, from the script itself")
lab.log(step=0, outside=1)

class Pair:
    def __init__(self, left, right):
        self.left, self.right = left, right

def work(pair):
    rank = distributed.get_rank()
    print("rank", rank, "of", distributed.get_world_size(), "on", lab.device(), "with", lab.cpus(), "core")
    total = torch.tensor([pair.left + rank, pair.right + rank])
    distributed.all_reduce(total)
    lab.log(step=1, inside=rank)
    return Pair(*total.tolist())

pair = lab.launch(work, Pair(10, 20), processes=2)
assert isinstance(pair, Pair)
print("sum", pair.left, pair.right)
assert not [name for name in os.listdir("/tmp") if name.startswith("lab-launch-")]
"""

TRAIN = """
import lab, torch
from torch import distributed, nn

def train(arm, seed):
    return lab.launch(worker, arm["devices"], processes=arm["devices"])

def worker(devices):
    rank = distributed.get_rank()
    model = nn.Linear(8, 1)
    model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.Generator().manual_seed(7)
    for step in range(20):
        x, y = torch.randn(8, 8, generator=data), torch.randn(8, 1, generator=data)
        size = 8 // devices
        mine = slice(rank * size, (rank + 1) * size)
        loss = ((model(x[mine]) - y[mine]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    everyone = [torch.empty_like(weights) for _ in range(devices)]
    distributed.all_gather(everyone, weights)
    assert all(torch.equal(everyone[0], other) for other in everyone), "the ranks have different weights"
    total = loss.detach()
    distributed.all_reduce(total)
    lab.log(step=step, loss=total / devices)
    return {"val_loss": float(weights.sum())}

if __name__ == "__main__":
    lab.compare(train, {"one": {"devices": 1}, "two": {"devices": 2}}, [1])
"""

BROKEN = """
import os, sys, time
import lab
from torch import distributed

def raises():
    if distributed.get_rank() == 1:
        raise ValueError("the second one does not want to")
    time.sleep(60)

def leaves():
    if distributed.get_rank() == 1:
        os._exit(7)
    distributed.barrier()

def later(): pass

def tried(fn, **more):
    try:
        lab.launch(fn, processes=2, **more)
    except (RuntimeError, TypeError, ValueError) as error:
        print(type(error).__name__, error)

tried(raises)
tried(leaves)
tried(lambda: 1)
def never(): pass
tried(never)
os.environ["LAB_GPUS"] = "1"
tried(later)
others = [p for p in os.listdir("/proc") if p.isdigit() and int(p) not in (1, os.getpid())]
print("left over:", [p for p in others if os.path.exists("/proc/" + p)])
"""


def test_ranks_meet_without_a_network_and_only_the_first_is_heard(bench: Bench) -> None:
    execution = bench.run(SUM, wall="60s")
    assert execution.outcome is Outcome.COMPLETED, execution.stderr
    assert execution.stdout.splitlines() == [
        "once, from the script itself",
        "rank 0 of 2 on cpu with 1 core",
        "sum 21 41",
    ]
    values = [record.values for record in bench.sink.records if isinstance(record, MetricRecord)]
    assert values == [{"outside": 1}, {"inside": 0}]


@pytest.mark.parametrize("backend", ["oci"], indirect=True)
def test_data_parallel_training_is_the_same_training(bench: Bench) -> None:
    execution = bench.run(TRAIN, wall="90s")
    assert execution.outcome is Outcome.COMPLETED, execution.stderr
    runs = {record.arm: record for record in bench.sink.records if getattr(record, "type", "") == "run"}
    assert runs["one"].status == runs["two"].status == "ok", execution.stderr
    assert runs["one"].values["val_loss"] == pytest.approx(runs["two"].values["val_loss"], rel=1e-4)
    tags = [(r.arm, r.seed, r.phase) for r in bench.sink.records if isinstance(r, MetricRecord)]
    assert tags == [("one", 1, "confirm"), ("two", 1, "confirm"), ("one", 1, "noise")], (
        "records carry what lab.compare says of them"
    )


@pytest.mark.parametrize("backend", ["oci"], indirect=True)
def test_a_rank_that_fails_ends_all_with_a_clear_line(bench: Bench) -> None:
    began = time.monotonic()
    execution = bench.run(BROKEN, wall="60s")
    assert execution.outcome is Outcome.COMPLETED, execution.stderr
    said = execution.stdout.replace(
        "rank 0 of 2: RuntimeError: never", "rank 1 of 2: RuntimeError: never"
    )  # both say it
    assert said.splitlines() == [
        "RuntimeError rank 1 of 2: ValueError: the second one does not want to",
        "RuntimeError rank 1 of 2 exited with status 7",
        "TypeError lab.launch needs a function of the script's top level, not <lambda>",
        "RuntimeError rank 1 of 2: RuntimeError: never is not defined before the script's first lab.launch or lab.compare",
        "ValueError cannot run 2 processes on 1 GPU(s)",
        "left over: []",
    ]
    assert time.monotonic() - began < 50, "nobody waited for a rank that was gone"
