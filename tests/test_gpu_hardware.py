"""What only hardware can show. Run by `make test-gpu` on a machine with an NVIDIA device, which keeps the figures.

What a backend does with devices is shown on both; Docker is left out where its engine cannot pass them on, or lacks the image.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from executor.backends.conformance import run_suite
from executor.backends.docker import DockerBackend
from executor.errors import SandboxUnavailable
from executor.experiment import Outcome
from executor.gpus.devices import Machine
from executor.gpus.lending import Gpus
from executor.gpus.nvml import Nvml
from orchestrator.lab_setup import LabOptions
from orchestrator.research_team import AIResearchTeam
from orchestrator.sprint import Budgets
from policies.model import PartialLimits
from policies.state import cache_dir
from results.summary import outcome_of, part
from sandbox_images.images import image_reference
from tests.conftest import Recorded as Sink
from tests.gpu_bench import FIRST_KERNEL, IMAGE, Bench, Timed

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]

SEEN = """
import ctypes, torch
nvml = ctypes.CDLL("libnvidia-ml.so.1")
assert nvml.nvmlInit_v2() == 0
count, handle, text = ctypes.c_uint(), ctypes.c_void_p(), ctypes.create_string_buffer(96)
nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
for index in range(count.value):
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
        continue
    sliced, pending, part = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_void_p()
    nvml.nvmlDeviceGetMigMode(handle, ctypes.byref(sliced), ctypes.byref(pending))
    slices = [
        ctypes.c_void_p(part.value) for n in range(8 if sliced.value else 0)
        if nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, n, ctypes.byref(part)) == 0
    ]
    for one in slices if sliced.value else [handle]:
        nvml.nvmlDeviceGetUUID(one, text, 96)
        print("nvml", text.value.decode())
print("torch", torch.cuda.device_count(), torch.cuda.get_device_name(0))
"""
BUSY = """
import time, torch
x = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
until = time.monotonic() + {seconds}
while time.monotonic() < until:
    for _ in range(20):
        x = (x @ x).clamp(-1, 1)
    torch.cuda.synchronize()
print("done")
"""
HOG = """
import time, torch
print("began", flush=True)
held = []
while True:
    held.append(torch.ones(1 << 28, device="cuda"))  # 1 GiB
    torch.cuda.synchronize()
    time.sleep(0.1)
"""


@pytest.fixture
def bench(
    request: pytest.FixtureRequest, own_state: Path, record_property: Callable[[str, object], None]
) -> Iterator[Bench]:
    gpus, backend = Gpus(Nvml(), own_state / "locks"), getattr(request, "param", "oci")
    if backend == "docker" and (problem := docker_problem(gpus)):
        pytest.skip(problem)
    yield Bench(own_state, record_property, gpus, backend)
    assert not gpus.queue().claims, "a lease was left behind"


def docker_problem(gpus: Gpus) -> str | None:
    """Why Docker cannot be shown on this machine."""
    try:
        docker = DockerBackend(image_reference("gpu"))
        missing = None if docker.has_image() else f"the engine has no {image_reference('gpu')}"
        problems = docker.gpu_problems(gpus.machine)
        return next(iter(problems.values()), None) or missing
    except SandboxUnavailable as error:
        return str(error)


on_both = pytest.mark.parametrize("bench", ["oci", "docker"], indirect=True)


@on_both
def test_the_container_sees_exactly_the_leased_device(bench: Bench) -> None:
    sink = Sink()
    execution = bench.run(SEEN, sink)
    assert execution.outcome is Outcome.COMPLETED, execution.stderr or execution.message
    lines = sink.stdout.decode().splitlines()
    assert [line for line in lines if line.startswith("nvml")] == [f"nvml {execution.gpus[0]}"]
    assert next(line for line in lines if line.startswith("torch")).startswith("torch 1 ")
    bench.figures("devices of the machine, and seen inside", f"{len(bench.gpus.machine.usable)}, 1")


@on_both
def test_nothing_of_a_device_is_there_where_none_was_lent(bench: Bench) -> None:
    look = "import os, torch; print(torch.cuda.is_available(), [n for n in os.listdir('/dev') if 'nvidia' in n])"
    sink = Sink()
    execution = bench.run(look, sink, gpus=0)
    assert execution.outcome is Outcome.COMPLETED, execution.stderr or execution.message
    assert sink.stdout == b"False []\n"
    bench.figures("devices inside where none was lent", "0")


def test_energy_utilisation_and_memory_are_recorded(bench: Bench) -> None:
    execution = bench.run(BUSY.format(seconds=8))
    assert execution.outcome is Outcome.COMPLETED, execution.stderr or execution.message
    (usage,) = execution.usage.gpus
    assert usage.mean_utilisation is not None and usage.mean_utilisation > 30
    assert usage.peak_memory_bytes > 100 << 20 and len(usage.samples) >= 6
    if bench.device.parent is None:  # of a slice, the driver counts none
        assert usage.energy_j is not None and usage.energy_j > 100
    bench.figures(
        "8 s of matrix products",
        f"{usage.energy_j} J, {usage.mean_utilisation:.0f} % busy, {usage.peak_memory_bytes >> 20} MiB at most",
    )


def test_the_memory_cap_ends_a_hog_while_its_neighbour_on_the_device_goes_on(bench: Bench) -> None:
    shared = bench.policy.model_copy(update={"gpu": bench.policy.gpu.model_copy(update={"sharing": "shared"})})
    neighbour = bench.started(BUSY.format(seconds=25), policy=shared, gpu_memory="6GiB")
    began = time.monotonic()
    hog = bench.run(HOG, policy=shared, gpu_memory="8GiB", wall="60s")
    took = time.monotonic() - began
    beside = neighbour.end()
    assert hog.outcome is Outcome.GPU_MEMORY, hog.message
    assert beside.outcome is Outcome.COMPLETED and beside.gpus == hog.gpus, beside.stderr or beside.message
    over = hog.usage.gpus[0].peak_memory_bytes - (8 << 30)
    bench.figures(
        "a hog above its cap of 8 GiB", f"ended after {took:.1f} s, {over >> 20} MiB above, its neighbour went on"
    )


@on_both
def test_the_memory_cap_holds_on_a_device_of_ones_own(bench: Bench) -> None:
    execution = bench.run(HOG, gpu_memory="4GiB", wall="60s")
    assert execution.outcome is Outcome.GPU_MEMORY, execution.message
    bench.figures(
        "most memory held under a cap of 4 GiB", f"{execution.usage.gpus[0].peak_memory_bytes / (1 << 30):.1f} GiB"
    )


OWNER = """
import sys
from pathlib import Path
from executor.gpus.lending import Gpus
from executor.gpus.nvml import Nvml
from tests.gpu_bench import Bench
from tests.test_gpu_hardware import BUSY
Bench(Path(sys.argv[1]), print, Gpus(Nvml(), Path(sys.argv[1]) / "locks")).run(BUSY.format(seconds=100))
"""


def test_a_device_is_free_again_when_its_owner_is_killed_with_a_kernel_running(bench: Bench) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(bench.state)], cwd=Path(__file__).parent.parent)
    device = bench.device
    while not any(process.memory for process in bench.gpus.nvml.read(device).processes or ()):
        assert owner.poll() is None, "it ended before it reached the device"
        time.sleep(0.1)
    owner.kill()
    owner.wait()
    began = time.monotonic()
    execution = bench.run(FIRST_KERNEL)
    assert execution.outcome is Outcome.COMPLETED, execution.stderr or execution.message
    bench.figures("the next one's first kernel after kill -9 of the owner", f"{time.monotonic() - began:.1f} s")


@on_both
def test_the_limits_hold_with_the_device_inside(bench: Bench) -> None:
    on_device = "import torch; x = torch.ones(8, device='cuda'); print('on', flush=True)\n"
    assert bench.run(on_device + "while True: x = x + 1", wall="15s").outcome is Outcome.TIMEOUT
    assert bench.run(on_device + "y = bytearray(8 << 30)", memory="4GiB").outcome is Outcome.OOM
    crowd = "import threading, time\nfor _ in range(900): threading.Thread(target=time.sleep, args=(9,)).start()"
    assert bench.run(on_device + crowd).outcome is Outcome.FAILED
    outside = bench.run(on_device + "import socket; socket.create_connection(('192.0.2.1', 80), 2)")
    assert outside.outcome is Outcome.FAILED and "unreachable" in outside.stderr
    bench.figures("wall clock, memory, pids, network", "hold")


PINNED = """
import torch
held, free = [], lambda: int(next(line for line in open("/proc/meminfo") if line.startswith("MemAvailable")).split()[1]) << 10
before = free()
for _ in range(6):
    held.append(torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True).fill_(1))
print((before - free()) >> 20, flush=True)
"""


def test_how_much_memory_that_the_driver_pins_goes_past_the_limit(bench: Bench) -> None:
    sink = Sink()
    execution = bench.run(PINNED, sink, memory="3GiB", wall="60s")
    assert execution.outcome in (Outcome.COMPLETED, Outcome.OOM, Outcome.FAILED), execution.message
    said = sink.stdout.decode().strip()
    bench.figures("6 GiB pinned under a limit of 3 GiB", f"{execution.outcome}{f', {said} MiB taken' if said else ''}")


@on_both
def test_every_attack_is_held_with_the_device_inside(bench: Bench) -> None:
    findings = list(run_suite(bench.executor(), bench.policy))
    assert [f"{finding.name}: {finding.detail}" for finding in findings if not finding.held] == []
    bench.figures("attacks of the conformance suite", f"{len(findings)} held")


JOINED = """
import lab, torch
from torch import distributed

def work():
    x = torch.ones(1 << 24, device=lab.device())
    for _ in range(10):
        distributed.all_reduce(x)
        x /= distributed.get_world_size()
    torch.cuda.synchronize()
    return float(x.mean()), distributed.get_backend(), distributed.get_world_size()

print(*lab.launch(work))
"""


def test_processes_meet_on_the_devices_without_a_network(bench: Bench) -> None:
    whole = len([device for device in bench.gpus.machine.usable if device.parent is None])
    if not whole:
        pytest.skip("slices only, which NCCL does not join")
    count = 1 << (whole.bit_length() - 1)
    sink = Sink()
    execution = bench.run(JOINED, sink, gpus=min(8, count))
    assert execution.outcome is Outcome.COMPLETED, execution.stderr or execution.message
    assert sink.stdout.split() == [b"1.0", b"nccl", str(min(8, count)).encode()]
    bench.figures("processes joined by NCCL", str(min(8, count)))


def test_a_data_parallel_study_runs_on_all_devices(bench: Bench, tmp_path: Path) -> None:
    whole = len([device for device in bench.gpus.machine.usable if device.parent is None])
    if whole < 2:
        pytest.skip("one device; the same path runs with gloo in test_launch.py and test_studies.py")
    count = 1 << (min(8, whole).bit_length() - 1)
    options = LabOptions(policy="gpu", backend="oci", image=IMAGE, limits=PartialLimits(gpus=count))
    team = AIResearchTeam(agents="playbook", options=options, results_dir=tmp_path)
    summary = team.run_sprint(f"Compare data-parallel training on 1 and {count} GPUs")
    assert outcome_of(summary) == "completed"
    bench.figures(f"throughput on 1 and {count} devices", str(summary["verdict"]))


def test_two_playbook_sprints_queue_for_one_device(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gpus, "machine", one_device(bench.gpus.machine))
    limits = PartialLimits.model_validate({"gpus": 1, "wall": "45s"})
    options = LabOptions(policy="gpu", backend="oci", image=IMAGE, limits=limits)

    def sprint(number: int) -> dict[str, Any]:
        team = AIResearchTeam(
            agents="playbook", options=options, results_dir=tmp_path / str(number), budgets=Budgets(60, 200, 60)
        )
        return team.run_sprint("Compare AdamW vs. Lion on a small transformer on a GPU")

    with ThreadPoolExecutor(2) as pool:
        summaries = list(pool.map(sprint, range(2)))
    executions = [part(summary, "implementation")["execution"] for summary in summaries]
    assert [outcome_of(summary) for summary in summaries] == ["completed", "completed"]
    (first,), (second,) = (execution["usage"]["gpus"] for execution in executions)
    assert first["uuid"] == second["uuid"] and first["peak_memory_bytes"] > 100 << 20
    waited = max(execution["timings"]["queue_s"] for execution in executions)
    assert waited > 5
    bench.figures(
        "two playbook sprints (AdamW vs. Lion, 45 s each) for one device",
        f"one waited {waited:.0f} s; {summaries[0]['verdict']} {first['energy_j']} J, "
        f"{first['mean_utilisation']:.0f} % busy, {first['peak_memory_bytes'] >> 20} MiB at most",
    )


def one_device(machine: Machine) -> Machine:
    """The same machine with its first device alone."""
    return replace(machine, devices=machine.usable[:1])


def test_how_long_it_takes_to_the_first_kernel(bench: Bench) -> None:
    python = str(Path(IMAGE) / "bin/python3") if IMAGE else _environment_python()
    bare, contained = [], []
    for _ in range(5):
        began = time.monotonic()
        with subprocess.Popen([python, "-u", "-c", FIRST_KERNEL], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline()
            bare.append(time.monotonic() - began)
        sink, began = Timed(), time.monotonic()
        assert bench.run(FIRST_KERNEL, sink).outcome is Outcome.COMPLETED
        assert sink.first is not None
        contained.append(sink.first - began)
    inside, outside = statistics.median(contained), statistics.median(bare)
    bench.figures(
        "request to first CUDA kernel, medians of 5",
        f"{inside:.2f} s in a cold container, {outside:.2f} s bare ({inside / outside:.2f} times)",
    )


def _environment_python() -> str:
    from sandbox_images.environment import environment

    return str(environment(cache_dir(), lambda text: print(text, file=sys.stderr), "gpu").path / "bin/python3")
