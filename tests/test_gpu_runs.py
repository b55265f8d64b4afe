"""Runs with GPUs, without a GPU: real containers, real device nodes and cgroup rules, and NVIDIA's libraries played by a
list of devices. What only hardware can show is in test_gpu_hardware.py.
"""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from executor.backends.base import Passed
from executor.backends.conformance import run_suite
from executor.backends.docker import DockerBackend
from executor.backends.oci import OciBackend
from executor.errors import SandboxUnavailable
from executor.executor import Executor
from executor.experiment import Execution, Experiment, Outcome
from executor.gpus.choice import Wanted
from executor.gpus.lending import Gpus
from executor.gpus.processes import container_of
from executor.places import Places, Room
from executor.posture import posture_of, torch_problem
from policies.audit import AuditLog
from policies.decision import Request
from policies.model import Ceiling, GpuCeiling, Isolation, PartialLimits, Policy, load_policy
from policies.state import cache_dir
from tests.conftest import Recorded as Sink
from tests.nvml_machines import GiB, Gpu, Recorded, nvml, uuid

HERE = Path(__file__).parent
TWO = (uuid(0), uuid(1))
LOOK = """
import os, json
print(json.dumps({
    "nodes": sorted(os.listdir("/dev")),
    "told": {name: value for name, value in os.environ.items() if name.startswith(("LAB_GPU", "LD_", "NVIDIA", "TRITON"))},
}))
for name in ("nvidia0", "nvidia1"):
    try:
        open("/dev/" + name, "rb").close()
        print(name, "opens")
    except OSError as error:
        print(name, error.strerror)
"""


def built(folder: Path, *uuids: str, cuda: bool = True) -> Path:
    """NVIDIA's libraries as a container with these devices would have them."""
    folder.mkdir(parents=True)
    compiler = next(found for name in ("cc", "tcc") if (found := shutil.which(name)))
    listed = ", ".join(f'"{one}"' for one in uuids)
    target = folder / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-nostdlib", f"-DUUIDS={listed}", f"-DCUDA={int(cuda)}"]
    subprocess.run([compiler, *flags, "-o", str(target), str(HERE / "fake_driver.c")], check=True)
    shutil.copy(target, folder / "libnvidia-ml.so.1")
    return folder


def node(path: str, minor: int) -> dict[str, object]:
    return {"path": path, "type": "c", "major": 195, "minor": minor, "fileMode": 0o666, "permissions": "rw"}


def spec_file(folder: Path, libraries: Path, nodes: dict[str, str]) -> Path:
    """A CDI spec of devices (UUID → node in the container). Their numbers are NVIDIA's: no driver answers to them here."""
    spec = {
        "cdiVersion": "0.6.0",
        "kind": "nvidia.com/gpu",
        "devices": [
            {"name": name, "containerEdits": {"deviceNodes": [node(path, minor)]}}
            for minor, (name, path) in enumerate(nodes.items())
        ],
        "containerEdits": {
            "env": ["NVIDIA_VISIBLE_DEVICES=void"],
            "deviceNodes": [node("/dev/nvidiactl", 255)],
            "mounts": [
                {
                    "hostPath": str(library),
                    "containerPath": f"/run/nvidia/lib/{library.name}",
                    "options": ["ro", "nosuid", "nodev", "bind"],
                }
                for library in sorted(libraries.iterdir())
            ],
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nvidia.json"
    path.write_text(json.dumps(spec))
    return path


@dataclass
class Machine:
    """A machine with GPUs, as far as labsandbox can tell."""

    state: Path
    recorded: Recorded
    policy: Policy
    ceilings: tuple[Ceiling, ...] = ()

    def executor(self, said: list[str] | None = None) -> Executor:
        backend = OciBackend(self.state, cache_dir(), cdi=[self.state / "cdi"])
        told: Callable[[str], None] = (said if said is not None else []).append
        return Executor(backend, AuditLog(self.state / "audit.jsonl"), self.ceilings, told, gpus=self.gpus())

    def gpus(self) -> Gpus:
        return Gpus(nvml(self.recorded), self.state / "locks")

    def run(
        self, code: str, sink: Sink | None = None, wait: float = 5, said: list[str] | None = None, **limits: object
    ) -> Execution:
        request = Request(limits=PartialLimits.model_validate({"gpus": 1, **limits}), gpu_wait=wait)
        return self.executor(said).run(Experiment(code=code), self.policy, request, sink or Sink())

    def records(self, event: str) -> list[dict[str, object]]:
        return [r for r in AuditLog(self.state / "audit.jsonl").records() if r["event"] == event]


@pytest.fixture
def machine(own_state: Path) -> Machine:
    """Two devices, of which the container's libraries list the first."""
    libraries = built(own_state / "driver", TWO[0])
    spec_file(own_state / "cdi", libraries, dict(zip(TWO, ("/dev/nvidia0", "/dev/nvidia1"), strict=True)))
    recorded = Recorded(Gpu(uuid(0)), Gpu(uuid(1), minor=1, bus="00000000:65:00.0", total=96 * GiB))
    return Machine(own_state, recorded, load_policy("gpu"))


def test_the_container_sees_the_lent_device_and_no_other(machine: Machine) -> None:
    sink = Sink()
    execution = machine.run(LOOK, sink)
    assert execution.outcome is Outcome.COMPLETED, execution.message
    seen = json.loads(sink.stdout.splitlines()[0])
    assert "nvidia0" in seen["nodes"] and "nvidiactl" in seen["nodes"] and "nvidia1" not in seen["nodes"]
    assert seen["told"] == {
        "LAB_GPUS": "1",
        "LD_LIBRARY_PATH": "/run/nvidia/lib",
        "TRITON_LIBCUDA_PATH": "/run/nvidia/lib",
    }
    assert b"nvidia0 No such device or address" in sink.stdout, "its control group lets it, and there is no driver"
    assert b"nvidia1 No such file" in sink.stdout
    assert execution.gpus == [uuid(0)]
    assert execution.limits["gpus"].observed == 1


def test_the_record_and_the_audit_log_say_which_device_how_long_and_what_it_drew(machine: Machine) -> None:
    class Working(Recorded):
        def nvmlDeviceGetTotalEnergyConsumption(self, gpu: Gpu) -> int:
            gpu.energy = (gpu.energy or 0) + 50_000
            return gpu.energy

    machine.recorded = Working(*machine.recorded.gpus)
    machine.recorded.gpus[0].utilisation = 77
    execution = machine.run("import time; time.sleep(1.3)")
    (usage,) = execution.usage.gpus
    assert usage.uuid == uuid(0) and usage.mean_utilisation == 77 and usage.energy_j and usage.energy_j >= 50
    assert len(usage.samples) >= 2 and usage.samples[0].power_w == 60 and usage.samples[0].temperature_c == 31
    (lease,), (end,), (start,) = (machine.records(event) for event in ("lease", "end", "start"))
    assert lease["gpus"] == [uuid(0)] and lease["shared"] is False
    assert 1.3 <= end["gpu_seconds"] < 30 and end["gpu_energy_j"] == pytest.approx(usage.energy_j)  # type: ignore[operator]
    assert start["gpus_by"] == f"CDI, {machine.state / 'cdi/nvidia.json'}"
    assert Execution.from_json(execution.as_json()) == execution


@pytest.mark.parametrize(
    ("listed", "cuda", "why"),
    [
        ((uuid(1),), True, "is not visible inside"),
        (TWO, True, "is visible, and was not lent"),
        (TWO[:1], False, "CUDA cannot use the GPUs inside: cuInit answers 100"),
    ],
)
def test_a_device_that_is_not_as_lent_inside_is_infrastructure_and_never_a_cpu_run(
    machine: Machine, listed: tuple[str, ...], cuda: bool, why: str
) -> None:
    libraries = built(machine.state / "other", *listed, cuda=cuda)
    spec_file(machine.state / "cdi", libraries, {uuid(0): "/dev/nvidia0", uuid(1): "/dev/nvidia1"})
    sink = Sink()
    execution = machine.run("print('ran')", sink)
    assert execution.outcome is Outcome.INFRASTRUCTURE and why in execution.message
    assert sink.stdout == b""


def test_a_machine_without_the_drivers_libraries_runs_nothing(machine: Machine) -> None:
    (machine.state / "empty").mkdir()
    spec_file(machine.state / "cdi", machine.state / "empty", {uuid(0): "/dev/nvidia0"})
    with pytest.raises(SandboxUnavailable, match=r"libcuda\.so\.1 was not found"):
        machine.run("print('ran')")
    assert machine.records("end")[0]["outcome"] == "infrastructure" and not machine.gpus().queue().holders


def test_no_gpu_is_in_a_container_that_asked_for_none(machine: Machine) -> None:
    sink = Sink()
    machine.run(LOOK, sink, gpus=0)
    seen = json.loads(sink.stdout.splitlines()[0])
    assert not [node for node in seen["nodes"] if node.startswith("nvidia")] and seen["told"] == {"LAB_GPUS": "0"}
    assert not machine.records("lease")


class Hogged(Recorded):
    """Every process in one of this test's containers holds 30 GiB of the first device once it has run for a second."""

    state = Path()

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: Gpu) -> list[object]:
        if gpu.minor != 0:
            return []
        return [
            SimpleNamespace(
                pid=process.pid, usedGpuMemory=30 * GiB if time.time() - process.info["create_time"] > 1 else GiB
            )
            for process in psutil.process_iter(["create_time"])
            if self._ours(process.pid) and b"experiment.py" in cmdline(process.pid)
        ]

    def _ours(self, pid: int) -> bool:
        container = container_of(pid)
        return bool(container and any(self.state.glob(f"**/oci/bundles/*/{container}")))


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_one_who_takes_more_memory_than_its_cap_is_ended_and_its_neighbour_is_not(machine: Machine) -> None:
    machine.recorded = Hogged(*machine.recorded.gpus)
    machine.recorded.state = machine.state
    libraries = built(machine.state / "second", TWO[1])
    neighbour = replace(machine, state=machine.state / "neighbour", recorded=machine.recorded)
    spec_file(neighbour.state / "cdi", libraries, dict(zip(TWO, ("/dev/nvidia0", "/dev/nvidia1"), strict=True)))
    ended: list[Execution] = []
    hogging = threading.Thread(
        target=lambda: ended.append(
            machine.run("import time; print('began', flush=True); time.sleep(60)", gpu_memory="16GiB")
        )
    )
    began = time.monotonic()
    hogging.start()
    beside = neighbour.run("import time; time.sleep(4); print('done')", gpu_memory="90GiB")  # fits the second alone
    hogging.join()
    took = time.monotonic() - began
    (hog,) = ended
    assert hog.outcome is Outcome.GPU_MEMORY, hog.message
    assert "16GiB of a GPU's memory" in hog.message
    assert "began" in hog.stdout and took < 20
    assert hog.usage.gpus[0].peak_memory_bytes == 30 * GiB
    assert beside.outcome is Outcome.COMPLETED and beside.gpus == [uuid(1)]
    (limit,) = machine.records("limit")
    assert limit["limit"] == "gpu_memory" and limit["effective"] == 16 * GiB


def test_the_experiment_is_told_its_cap_and_the_limit_says_who_holds_it(machine: Machine) -> None:
    sink = Sink()
    execution = machine.run(LOOK, sink, gpu_memory="16GiB")
    assert json.loads(sink.stdout.splitlines()[0])["told"]["LAB_GPU_MEMORY"] == str(16 * GiB)
    limit = execution.limits["gpu_memory"]
    assert (limit.requested, limit.effective, limit.enforced_by) == (16 * GiB, 16 * GiB, "the host's watch (NVML)")


def test_two_runs_queue_for_one_device(machine: Machine) -> None:
    machine.recorded = Recorded(machine.recorded.gpus[0])
    said: list[str] = []
    done: list[Execution] = []
    first = threading.Thread(target=lambda: done.append(machine.run("import time; time.sleep(2)")))
    first.start()
    while not machine.gpus().queue().holders:
        time.sleep(0.02)
    second = machine.run("print('my turn')", wait=60, said=said)
    first.join()
    assert second.outcome is Outcome.COMPLETED and done[0].outcome is Outcome.COMPLETED
    assert second.timings.queue_s > 1 and "place 1 in the queue for GPUs: lent" in said[0]
    waited = [record["waited_s"] for record in machine.records("lease")]
    assert waited[1] == pytest.approx(second.timings.queue_s, abs=0.01)


def test_one_who_will_not_wait_is_told_and_recorded(machine: Machine) -> None:
    machine.recorded = Recorded(replace(machine.recorded.gpus[0], compute=[(1, 40 * GiB)]))
    with pytest.raises(SandboxUnavailable, match="others hold 40960 MiB on it"):
        machine.run("print(1)", wait=0)
    (end,) = machine.records("end")
    assert end["outcome"] == "infrastructure" and not machine.records("lease")


def test_the_other_limits_hold_with_a_device_inside(machine: Machine) -> None:
    assert machine.run("import time; time.sleep(60)", wall="1s").outcome is Outcome.TIMEOUT
    assert machine.run("x = bytearray(1 << 30)", memory="256MiB").outcome is Outcome.OOM
    crowd = "import threading, time\nfor _ in range(200): threading.Thread(target=time.sleep, args=(9,)).start()"
    crowded = machine.run(crowd, pids=32)
    assert crowded.outcome is Outcome.FAILED and machine.records("limit")[-1]["limit"] == "pids"
    outside = machine.run("import socket; socket.create_connection(('192.0.2.1', 80), 2)")
    assert outside.outcome is Outcome.FAILED and "unreachable" in outside.stderr
    for execution in (crowded, outside):
        assert execution.gpus == [uuid(0)]


def test_every_attack_is_held_with_a_device_inside(machine: Machine) -> None:
    machine.recorded = Recorded(machine.recorded.gpus[0])
    findings = list(run_suite(machine.executor(), machine.policy))
    assert [f"{finding.name}: {finding.detail}" for finding in findings if not finding.held] == []
    assert len(findings) >= 60
    leases = machine.records("lease")
    assert all(lease["gpus"] == [uuid(0)] for lease in leases)
    assert len(machine.records("start")) == len(leases) + 1, "the run beside the probes leaves them the only device"


def test_what_the_engines_hooks_mount_is_closed_to_the_experiment() -> None:
    look = "from executor import runner; runner.close_hooks_folders()"
    make = "mount -t tmpfs none /run && mkdir /run/nvidia-ctk-hook1a && chmod 1777 /run/nvidia-ctk-hook1a"
    command = ["unshare", "--mount", "sh", "-c", f'{make} && "$@" && stat -c %a /run/*', "sh"]
    done = subprocess.run([*command, sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "555\n"


def test_a_run_with_a_device_ends_before_the_machine_has_no_memory_left(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executor.gpus.watch._SPARE", 1.0)
    execution = machine.run("import time; time.sleep(20)")
    assert execution.outcome is Outcome.OOM and "the machine had next to no memory left" in execution.message
    assert [end["limit"] for end in machine.records("limit")] == ["memory"]
    assert machine.run("import time; time.sleep(2)", gpus=0).outcome is Outcome.COMPLETED


def test_the_boxs_ceilings_on_gpus_hold_for_each_user(machine: Machine) -> None:
    machine.ceilings = (Ceiling(gpu=GpuCeiling.model_validate({"per_user": 1, "time_per_day": "2m"})),)
    assert machine.run("print(1)", gpus=2).outcome is Outcome.DENIED
    assert machine.run("import time; time.sleep(1)", wall="110s").outcome is Outcome.COMPLETED
    denied = machine.run("print(1)", wall="120s")
    assert denied.outcome is Outcome.DENIED and "of GPU time" in denied.message and "2m" not in denied.message
    rules = [rule["id"] for record in machine.records("decision") for rule in record["rules"]]  # type: ignore[union-attr,index]
    assert {"ceiling.gpu.per_user", "ceiling.gpu.time_per_day"} <= set(rules)


def test_waiting_in_the_queue_gets_nobody_past_the_boxs_ceiling(machine: Machine) -> None:
    machine.recorded = Recorded(machine.recorded.gpus[0])
    machine.ceilings = (Ceiling(gpu=GpuCeiling.model_validate({"time_per_day": "61s"})),)
    done: list[Execution] = []
    first = threading.Thread(target=lambda: done.append(machine.run("import time; time.sleep(3)", wall="60s")))
    first.start()
    while not machine.gpus().queue().holders:
        time.sleep(0.02)
    # Decided while nothing had been used, were it not counted again when its turn comes.
    second = machine.run("print('ran')", wall="58.5s", wait=60)
    first.join()
    assert done[0].outcome is Outcome.COMPLETED
    assert second.outcome is Outcome.DENIED and second.gpus == [] and "ran" not in second.stdout


@dataclass
class Inspected:
    """A container of an engine's, of which only PID 1's word is known."""

    passed: Passed
    id: str = "0" * 64

    def pid(self) -> None:
        return None

    group = pid

    def recorded(self) -> dict[str, float]:
        return {}


def deviations(
    greeting: dict[str, object], lent: bool = True, mounts: str = "", isolation: Isolation = "kernel"
) -> list[str]:
    passed = Passed("CDI", {}, frozenset({"195:0", "195:255", "510:0"})) if lent else Passed()
    lines = "22 21 0:20 / / ro - overlay overlay ro\n23 22 0:21 / /proc/sys ro - proc proc rw\n" + mounts
    told = {"nodes": nodes("1:3", "136:0"), "mountinfo": lines, **greeting}
    wanted = frozenset({uuid(0)}) if lent else frozenset()
    return posture_of(Inspected(passed), told, isolation, wanted).deviations  # type: ignore[arg-type]


def nodes(*numbers: str, **named: str) -> dict[str, str]:
    """Device nodes as PID 1 tells them."""
    return {**{f"/dev/{number}": number for number in numbers}, **{f"/dev/{name}": one for name, one in named.items()}}


SEEN = {"nvml": [uuid(0)], "cuda": [uuid(0)[4:].replace("-", "")]}


def test_a_device_node_that_was_not_lent_is_found_whichever_way_it_came() -> None:
    lent = deviations({"gpus": SEEN, "nodes": nodes("1:3", "136:0", "195:0", "195:255", "510:0")})
    assert not [line for line in lent if "node" in line]
    assert "the device node 195:1" in deviations({"gpus": SEEN, "nodes": nodes("1:3", "195:0", "195:1")})
    assert "the device node 8:0" in deviations({"nodes": nodes("1:3", "8:0")}, lent=False)
    assert "the device nodes could not be read" in deviations({"nodes": None})


def test_gvisors_own_number_of_a_lent_node_is_known_and_of_one_that_was_not_lent_is_not() -> None:
    told = {"nodes": {**nodes("1:3", "195:0"), "/dev/nvidia-uvm": "254:0"}}
    assert not [line for line in deviations({"gpus": SEEN, **told}, isolation="gvisor") if "node" in line]
    assert "the device node 254:0" in deviations({"gpus": SEEN, **told})
    assert "the device node 254:0" in deviations(told, lent=False, isolation="gvisor")


@pytest.mark.parametrize(
    "torch, newest, said",
    [
        ("13.0", "12.4", "built for CUDA 13.0, and the driver takes CUDA up to 12.4"),
        ("", "13.0", "built for CPUs only"),
        ("12.8", "12.2", None),  # another minor version works
        ("12.8", "13.0", None),
        (None, "13.0", None),
    ],
)
def test_a_torch_that_the_driver_is_too_old_for_is_found_before_it_goes_on_without_the_device(
    torch: str | None, newest: str, said: str | None
) -> None:
    problem = torch_problem({"gpus": {**SEEN, "torch": torch}}, newest)
    assert (said in problem if problem else False) if said else problem is None


def test_a_torch_for_cpus_never_runs_where_a_gpu_was_asked_for(machine: Machine) -> None:
    request = Request(limits=PartialLimits(gpus=1))
    experiment = Experiment(code="import torch; print('ran')", imports=("torch",))
    execution = machine.executor().run(experiment, machine.policy, request, Sink())
    assert execution.outcome is Outcome.INFRASTRUCTURE and execution.stdout == ""
    assert "the torch inside is built for CPUs only" in execution.message


def test_a_run_that_waits_for_a_device_can_be_called_off(machine: Machine) -> None:
    held = machine.gpus().lend("ab" * 8, Wanted(2), None, 0, print)
    request, began = Request(limits=PartialLimits(gpus=1), gpu_wait=60), time.monotonic()
    late = time.monotonic() + 1
    execution = machine.executor().run(
        Experiment(code="print(1)"), machine.policy, request, Sink(),
        unwanted=lambda: "enough" if time.monotonic() > late else None,
    )  # fmt: skip
    assert execution.outcome is Outcome.CANCELLED and execution.message == "enough"
    assert time.monotonic() - began < 30
    held.lease.release()
    assert not machine.gpus().queue().claims


def test_a_cap_on_a_devices_memory_without_a_device_is_denied(machine: Machine) -> None:
    execution = machine.run("print('ran')", gpus=0, gpu_memory="1GiB")
    assert execution.outcome is Outcome.DENIED and "for no GPU" in execution.message


def test_a_run_with_a_device_takes_its_share_of_cores_and_memory_as_well(machine: Machine) -> None:
    places = Places(Room(4.0, 64 * GiB, per_user=1), machine.state / "locks", machine.state)
    backend = OciBackend(machine.state, cache_dir(), cdi=[machine.state / "cdi"])
    log = AuditLog(machine.state / "audit.jsonl")
    executor = Executor(backend, log, gpus=machine.gpus(), places=places)
    asked, late = Request(limits=PartialLimits(gpus=1)), time.monotonic() + 2
    another = places.take("ab" * 8, 1.0, GiB)
    waited = executor.run(
        Experiment(code="print(1)"), machine.policy, asked, Sink(),
        unwanted=lambda: "long enough" if time.monotonic() > late else None,
    )  # fmt: skip
    another.release()
    assert waited.outcome is Outcome.CANCELLED and waited.message == "long enough"
    assert executor.run(Experiment(code="print(1)"), machine.policy, asked, Sink()).outcome is Outcome.COMPLETED
    assert not places.queue().claims and not machine.gpus().queue().claims


def test_devices_that_nobody_lent_are_found_also_where_nvml_is_silent() -> None:
    assert any("no GPU was lent" in line for line in deviations({"gpus": {"nvml_problem": "no library"}}, lent=False))
    silent = deviations({"gpus": {"nvml_problem": "no library", "cuda": SEEN["cuda"]}}, lent=False)
    assert any("no GPU was lent" in line for line in silent)


# As NVIDIA's toolkits leave them: libnvidia-container's procfs, the params hook of 1.18 and later, a daemon's socket.
TOOLKIT = """\
30 22 0:30 / /proc/driver/nvidia rw,nosuid,nodev,noexec - tmpfs tmpfs rw,mode=555
31 22 0:31 / /run/nvidia-ctk-hook1a2b rw - tmpfs tmpfs rw
32 30 0:31 /params /proc/driver/nvidia/params rw - tmpfs tmpfs rw
33 22 0:24 /nvidia-persistenced/socket /run/nvidia-persistenced/socket rw,nosuid,nodev,noexec - tmpfs tmpfs rw
34 22 0:5 /nvidia0 /dev/nvidia0 rw,nosuid,noexec - devtmpfs udev rw
"""


def test_the_mounts_of_nvidias_toolkit_are_known_where_devices_were_lent_and_nowhere_else() -> None:
    assert not [line for line in deviations({"gpus": SEEN}, mounts=TOOLKIT) if "writable" in line]
    assert len([line for line in deviations({}, lent=False, mounts=TOOLKIT) if "writable" in line]) == 5


@pytest.mark.parametrize("options", ["ro", "rw"])
def test_the_mps_daemons_folder_is_never_in_a_container(options: str) -> None:
    mps = f"35 22 0:24 / /tmp/nvidia-mps {options},nosuid,nodev - tmpfs tmpfs rw\n"
    assert any("MPS daemon" in line for line in deviations({"gpus": SEEN}, mounts=mps))


def test_of_a_spec_only_the_lent_devices_nodes_are_taken(machine: Machine) -> None:
    path = machine.state / "cdi/nvidia.json"
    spec = json.loads(path.read_text())
    spec["containerEdits"]["deviceNodes"] += [node("/dev/nvidia1", 1), node("/dev/nvidia-modeset", 254)]
    path.write_text(json.dumps(spec))
    sink = Sink()
    assert machine.run(LOOK, sink).outcome is Outcome.COMPLETED
    assert [one for one in json.loads(sink.stdout.splitlines()[0])["nodes"] if "nvidia" in one] == [
        "nvidia0",
        "nvidiactl",
    ]


def test_gvisor_without_nvproxy_is_refused_before_anything_is_prepared(machine: Machine) -> None:
    backend = OciBackend(machine.state, machine.state / "no-cache", "runsc")
    executor = Executor(backend, AuditLog(machine.state / "audit.jsonl"), gpus=machine.gpus())
    content = machine.policy.model_copy(update={"enforcement": "best-effort"})  # gVisor counts no inodes
    with pytest.raises(SandboxUnavailable, match=r"nvproxy|NVIDIA driver"):
        executor.preflight(content, Request(limits=PartialLimits(gpus=1)))
    assert not (machine.state / "no-cache").exists()


def test_an_engine_without_nvidias_toolkit_is_refused(machine: Machine, cpu_image: str) -> None:
    problems = DockerBackend(cpu_image).gpu_problems(machine.gpus().machine)
    assert problems.keys() == {uuid(0), uuid(1)}
    assert all("toolkit" in problem or "CDI" in problem for problem in problems.values())


def test_the_sampling_and_the_lease_end_with_the_run_whatever_ends_it(machine: Machine) -> None:
    broken = machine.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert broken.outcome is Outcome.FAILED
    assert not machine.gpus().queue().claims
