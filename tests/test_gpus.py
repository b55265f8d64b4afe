"""What is found of a machine's GPUs, and which of them are given: on recorded machines, since most have none."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner, Result

from executor.errors import InfrastructureError, SandboxUnavailable
from executor.gpus import processes
from executor.gpus.account import gpu_seconds
from executor.gpus.choice import Load, Wanted, fitting, never, pick, share_of, why_not
from executor.gpus.devices import Device, Machine, Process, Reading
from executor.gpus.driver import dmem_limit, made, own_nodes, unified_memory_major
from executor.gpus.engine import DeviceRequest, device_request, nvproxy_problem, toolkit_problem
from executor.gpus.lending import Gpus, _turn, outsiders
from executor.gpus.survey import survey
from executor.gpus.watch import GpuWatch
from executor.leases import Claim, Queue, Ticket, Turn
from orchestrator.cli.main import app
from policies.audit import AuditLog
from tests.nvml_machines import NONE, GiB, Gpu, Recorded, eight, nvml, one, sliced, uuid

# ---- discovery ----


def test_a_machine_without_nvml_says_so_plainly() -> None:
    machine = nvml(NONE).machine
    assert (
        machine.devices == () and machine.problem == "there is no NVIDIA driver on this machine (no libnvidia-ml.so.1)"
    )


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "modprobe nvidia"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "different versions"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "/dev/nvidiactl"),
        (pynvml.NVML_ERROR_UNKNOWN, "the NVIDIA driver answers"),
    ],
)
def test_a_driver_that_does_not_work_says_what_to_do(error: int, word: str) -> None:
    machine = nvml(Recorded(failing=error)).machine
    assert word in machine.problem and "\n" not in machine.problem
    assert never(machine, Wanted(1)) == machine.problem


def test_one_device_is_found_with_all_that_the_driver_tells() -> None:
    found = nvml(one(minor=3))
    (device,) = found.machine.devices
    assert device == Device(uuid(0), "NVIDIA A100-SXM4-80GB", 80 * GiB, 3, "0000:17:00.0")
    assert (found.machine.driver, found.machine.cuda) == ("580.95.05", "13.0")
    reading = found.read(device)
    assert (reading.power, reading.temperature, reading.energy) == (60.0, 31.0, 1000.0)


def test_what_a_device_does_not_tell_is_none_and_not_zero() -> None:
    found = nvml(one(power=None, energy=None, utilisation=None))
    reading = found.read(found.machine.devices[0])
    assert (reading.power, reading.energy, reading.utilisation) == (None, None, None)
    assert reading.temperature == 31.0


def test_a_gpu_in_mig_mode_gives_its_slices_and_never_itself() -> None:
    machine = nvml(sliced()).machine
    assert [device.uuid for device in machine.usable] == [uuid(0), uuid(1, "MIG"), uuid(2, "MIG")]
    part = machine.usable[1]
    assert (part.parent, part.instance, part.minor) == (uuid(1), (1, 0), 1)


def test_slices_are_found_where_the_whole_devices_memory_is_not_this_users_to_know() -> None:
    recorded = sliced()
    recorded.gpus[1].silent = pynvml.NVML_ERROR_NO_PERMISSION
    assert [device.uuid for device in nvml(recorded).machine.usable] == [uuid(0), uuid(1, "MIG"), uuid(2, "MIG")]


def test_a_device_whose_size_the_driver_does_not_tell_is_given_to_whoever_asks_for_no_size() -> None:
    machine = nvml(one(silent=pynvml.NVML_ERROR_NOT_SUPPORTED)).machine
    assert never(machine, Wanted(1)) is None
    assert never(machine, Wanted(1, memory=GiB)) and never(machine, Wanted(1, share=GiB))
    unknown = one(silent=pynvml.NVML_ERROR_NOT_SUPPORTED, compute=[(7, 5 * GiB)])
    assert watch(unknown, 4 * GiB).look(0.0) and not watch(unknown, 6 * GiB).look(0.0)


def test_a_gpu_in_mig_mode_without_slices_says_how_to_make_them() -> None:
    machine = nvml(Recorded(Gpu(uuid(0), slices=[]))).machine
    assert "nvidia-smi mig" in str(never(machine, Wanted(1)))


def test_a_lost_device_is_named_and_the_others_still_serve() -> None:
    machine = nvml(Recorded(Gpu(uuid(0), failing=pynvml.NVML_ERROR_GPU_IS_LOST), Gpu(uuid(1)))).machine
    assert [device.uuid for device in machine.usable] == [uuid(1)]
    assert "fell off the bus" in machine.devices[0].problem
    assert "fell off the bus" in str(never(machine, Wanted(2)))


def test_a_slice_that_is_taken_apart_meanwhile_hides_nothing_else() -> None:
    class Vanishing(Recorded):
        def nvmlDeviceGetGpuInstanceId(self, part: Gpu) -> int:
            if part.uuid == uuid(1, "MIG"):
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
            return super().nvmlDeviceGetGpuInstanceId(part)

    machine = nvml(Vanishing(*sliced().gpus)).machine
    assert [device.uuid for device in machine.usable] == [uuid(0), uuid(2, "MIG")]


def test_a_driver_too_old_to_list_processes_is_no_crash() -> None:
    class Old(Recorded):
        def nvmlDeviceGetComputeRunningProcesses(self, gpu: Gpu) -> list[object]:
            raise pynvml.NVMLLibraryMismatchError("Unversioned function called and the pyNVML version does not match")

    found = nvml(Old(Gpu(uuid(0))))
    assert found.read(found.machine.devices[0]).processes is None


def test_a_device_on_which_nobody_may_compute_is_not_given() -> None:
    machine = nvml(one(compute_mode=pynvml.NVML_COMPUTEMODE_PROHIBITED)).machine
    assert "nvidia-smi -c" in str(never(machine, Wanted(1)))


def test_gvisor_is_given_no_slices() -> None:
    machine = nvml(sliced()).machine
    assert [device.uuid for device in fitting(machine, Wanted(1, whole=True))] == [uuid(0)]


def test_a_device_that_this_user_may_not_use_is_left_out() -> None:
    machine = nvml(Recorded(Gpu(uuid(0), failing=pynvml.NVML_ERROR_NO_PERMISSION), Gpu(uuid(1)))).machine
    assert [device.uuid for device in machine.devices] == [uuid(1)]


# ---- processes, and who is an outsider ----


def test_a_process_is_named_by_user_command_and_container() -> None:
    owner = processes.owner_of(os.getpid())
    assert owner.user and "python" in owner.command


@pytest.mark.parametrize(
    ("text", "container"),
    [
        (f"0::/system.slice/docker-{'ab' * 32}.scope", "ab" * 32),
        (f"12:memory:/docker/{'0f' * 32}\n0::/", "0f" * 32),
        ("4:pids:/labsandbox/0123456789abcdef", "0123456789abcdef"),
        ("0::/user.slice/user-1000.slice", ""),
        ("0::/labsandbox/0123456789abcdef0", ""),
        (f"0::/docker/{'ab' * 32}/labsandbox/0123456789abcdef", "0123456789abcdef"),
    ],
)
def test_the_container_of_a_process_is_read_from_its_control_groups(
    text: str, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup").write_text(text)
    monkeypatch.setattr(processes, "Path", lambda name: tmp_path / Path(name).name)
    assert processes.container_of(1) == container


def test_outsiders_are_counted_by_what_they_hold_and_one_that_hides_it_counts_as_all() -> None:
    mine = os.getpid()
    assert outsiders(Reading(processes=(Process(mine, 3 * GiB),)), frozenset(), 80 * GiB) == 3 * GiB
    assert outsiders(Reading(processes=(Process(mine, None),)), frozenset(), 80 * GiB) == 80 * GiB
    assert outsiders(Reading(processes=()), frozenset(), 80 * GiB) == 0
    hidden = Reading(memory=5 * GiB, processes=(Process(mine, 3 * GiB),))  # of a pid namespace that is not ours
    assert outsiders(hidden, frozenset(), 80 * GiB) == 3 * GiB
    assert outsiders(replace(hidden, processes=()), frozenset(), 80 * GiB) == 5 * GiB - (512 << 20)
    assert outsiders(Reading(processes=(Process(mine, None),)), frozenset(), 0) > 80 * GiB
    assert outsiders(Reading(memory=5 * GiB, processes=None), frozenset(), 80 * GiB) == 5 * GiB - (512 << 20)


# ---- choice ----


def available(devices: Iterable[Device], loads: dict[str, Load], wanted: Wanted) -> list[Device]:
    return [device for device in devices if why_not(device, loads.get(device.uuid, Load()), wanted) is None]


def test_the_smallest_that_fits_is_taken_so_that_large_ones_stay() -> None:
    machine = nvml(eight()).machine
    assert pick(fitting(machine, Wanted(1)), {}, Wanted(1))[0].memory == 16 * GiB  # type: ignore[index]
    large = Wanted(1, memory=40 * GiB)
    assert pick(fitting(machine, large), {}, large)[0].memory == 80 * GiB  # type: ignore[index]


def test_several_are_of_one_kind_where_that_can_be() -> None:
    machine = nvml(eight()).machine
    for count, memory in ((2, 16 * GiB), (3, 80 * GiB), (6, 80 * GiB)):
        picked = pick(fitting(machine, Wanted(count)), {}, Wanted(count))
        assert picked is not None and {device.memory for device in picked} == {memory}
    everything = pick(fitting(machine, Wanted(8)), {}, Wanted(8))
    assert everything is not None and len(everything) == 8


def test_several_are_never_slices() -> None:
    machine = nvml(sliced()).machine
    assert never(machine, Wanted(1)) is None
    assert "these must be whole GPUs" in str(never(machine, Wanted(2)))


def test_a_wish_that_can_never_be_met_says_what_there_is() -> None:
    machine = nvml(eight()).machine
    assert "has 8, the largest of 80.0 GiB" in str(never(machine, Wanted(1, memory=141 * GiB)))
    assert "9 not available" in str(never(machine, Wanted(9)))


def test_a_device_that_others_are_busy_on_is_passed_over_above_the_threshold_alone() -> None:
    machine = nvml(eight()).machine
    loads = {uuid(6): Load(outsiders=600 << 20), uuid(7): Load(outsiders=100 << 20)}
    wanted = Wanted(1, busy=512 << 20)
    assert pick(available(machine.usable, loads, wanted), loads, wanted)[0].uuid == uuid(7)  # type: ignore[index]


LOADS = st.builds(
    Load,
    outsiders=st.integers(0, 2 * GiB),
    exclusive=st.booleans(),
    shares=st.lists(st.integers(GiB, 40 * GiB), max_size=3).map(tuple),
)
WANTED = st.builds(
    Wanted,
    count=st.integers(1, 4),
    memory=st.none() | st.integers(GiB, 96 * GiB),
    share=st.none() | st.integers(GiB, 96 * GiB),
    busy=st.integers(0, GiB),
)


@given(WANTED, st.lists(LOADS, min_size=8, max_size=8))
def test_whatever_is_picked_fits_is_free_and_is_not_oversubscribed(wanted: Wanted, loads: list[Load]) -> None:
    machine = nvml(eight()).machine
    by_uuid = {uuid(number): load for number, load in enumerate(loads)}
    picked = pick(available(fitting(machine, wanted), by_uuid, wanted), by_uuid, wanted)
    for device in picked or ():
        load = by_uuid[device.uuid]
        assert device.memory >= (wanted.memory or 0) and not load.exclusive and load.outsiders <= wanted.busy
        assert wanted.share is not None or not load.shares
        assert not load.shares or sum(load.shares) + share_of(device, wanted) < device.memory
    assert picked is None or len({device.uuid for device in picked}) == wanted.count


def test_sharing_fills_a_device_that_is_shared_already() -> None:
    machine = nvml(eight()).machine
    loads = {uuid(2): Load(shares=(20 * GiB,))}
    wanted = Wanted(1, share=30 * GiB)
    assert pick(available(machine.usable, loads, wanted), loads, wanted)[0].uuid == uuid(2)  # type: ignore[index]
    assert why_not(machine.usable[2], loads[uuid(2)], Wanted(1)) == "lent"


def test_what_an_outsider_leaves_goes_to_who_waited_first_and_what_lies_idle_meanwhile_to_others() -> None:
    machine = nvml(Recorded(Gpu(uuid(0)), Gpu(uuid(1), minor=1))).machine
    devices = {device.uuid: device for device in machine.usable}
    idle, taken = Reading(memory=0, processes=()), Reading(memory=9 * GiB, processes=(Process(os.getpid(), 9 * GiB),))
    nobody = Queue(())

    def wish(wanted: Wanted, *readings: Reading, ahead: tuple[Claim, ...] = ()) -> Turn:
        return _turn(devices, dict(zip(devices, readings, strict=True)), wanted, None, nobody, ahead)

    def waiting(turn: Turn, count: int) -> tuple[Claim, ...]:
        return (Claim(1, 0, Ticket(pid=1, execution="ab" * 8, since=0.0, count=count, could=turn.could)),)

    both = waiting(wish(Wanted(2), taken, idle), 2)
    assert [held.uuid for held in wish(Wanted(1), taken, idle, ahead=both).holds] == [uuid(1)]
    either = waiting(wish(Wanted(1), taken, taken), 1)
    assert not wish(Wanted(1), idle, taken, ahead=either).holds
    assert wish(Wanted(1), idle, taken).holds


# ---- the watch ----


def watch(recorded: Recorded, cap: int, shared: bool = False, mine: frozenset[int] = frozenset({7, 9})) -> GpuWatch:
    found = nvml(recorded)
    return GpuWatch(found, found.machine.usable[:1], cap, shared, mine.__contains__)


def test_the_watch_counts_the_experiments_own_processes_alone() -> None:
    recorded = one(compute=[(7, 5 * GiB), (8, 60 * GiB)])
    assert not watch(recorded, 6 * GiB, shared=True).look(0.0)
    assert watch(recorded, 4 * GiB, shared=True).look(0.0)


def test_the_watch_takes_the_rest_of_a_device_where_the_driver_tells_no_processes_sizes() -> None:
    recorded = one(compute=[(7, None)])
    looking = watch(recorded, 6 * GiB)
    recorded.gpus[0].used += 7 * GiB
    assert looking.look(0.0)
    recorded.gpus[0].compute.append((9, GiB))  # what is known is not all of it
    assert looking.look(0.0)
    with pytest.raises(InfrastructureError, match="shared, and the driver does not tell"):
        watch(recorded, 6 * GiB, shared=True).look(0.0)


def test_a_cap_holds_where_the_driver_lists_nothing_or_pids_of_another_namespace() -> None:
    recorded = one(compute=[])
    looking = watch(recorded, 6 * GiB)
    recorded.gpus[0].used += 7 * GiB
    assert looking.look(0.0), "the device is its alone"
    foreign = one(compute=[(4_000_000, GiB)])  # no such pid
    with pytest.raises(InfrastructureError, match="does not tell who"):
        shared = watch(foreign, 6 * GiB, shared=True)
        shared.look(0.0)
        shared.look(0.2)
    looking = watch(foreign, 6 * GiB)
    foreign.gpus[0].used += 7 * GiB
    looking.look(0.0)
    assert looking.look(0.2)


def test_nobody_is_blamed_for_what_others_hold() -> None:
    recorded = one(compute=[(os.getpid(), GiB)], used=GiB)
    looking = watch(recorded, 2 * GiB)
    recorded.gpus[0].used, recorded.gpus[0].compute = 11 * GiB, [(os.getpid(), 11 * GiB)]
    assert not any(looking.look(0.2 * n) for n in range(3))


def test_memory_that_no_process_is_told_to_hold_gets_round_no_cap() -> None:
    """Managed memory is the driver's own, and in nobody's account."""
    recorded = one(compute=[(7, GiB), (os.getpid(), GiB)], used=2 * GiB)
    alone, shared = watch(recorded, 8 * GiB), watch(recorded, 8 * GiB, shared=True)
    recorded.gpus[0].used = 70 * GiB
    assert not alone.look(0.0), "a process may have left between the driver's two answers"
    assert alone.look(0.2)
    with pytest.raises(InfrastructureError, match="does not tell who"):
        shared.look(0.0)
        shared.look(0.2)


def test_a_cap_as_large_as_the_device_is_no_cap() -> None:
    assert not watch(one(compute=[(7, 81 * GiB)]), 80 * GiB).look(0.0)


def test_energy_is_the_counters_difference_and_utilisation_the_samples_mean() -> None:
    recorded = one(compute=[(7, 5 * GiB)])
    looking = watch(recorded, 80 * GiB)
    for second, rate in enumerate((20, 40, 90)):
        recorded.gpus[0].utilisation, recorded.gpus[0].energy = rate, 1_000_000 + 250_000 * (second + 1)
        looking.look(float(second))
    (usage,) = looking.usage()
    assert (usage.energy_j, usage.mean_utilisation, usage.peak_memory_bytes) == (750.0, 50.0, 5 * GiB)
    assert [sample.t for sample in usage.samples] == [0.0, 1.0, 2.0]


def test_a_device_that_is_lost_under_a_run_is_infrastructures_fault() -> None:
    recorded = one()
    looking = watch(recorded, GiB)
    recorded.gpus[0].failing = pynvml.NVML_ERROR_GPU_IS_LOST
    with pytest.raises(InfrastructureError, match="fell off the bus"):
        looking.look(0.0)


# ---- who uses what ----


def test_the_survey_tells_leases_strangers_and_the_queue_apart(own_state: Path) -> None:
    recorded = eight()
    recorded.gpus[0].compute = [(os.getpid(), 2 * GiB)]
    gpus = Gpus(nvml(recorded), own_state / "locks")
    loan = gpus.lend("ab" * 8, Wanted(1, memory=40 * GiB, busy=GiB), None, 0, print)
    seen = survey(gpus)
    by_uuid = {state.device.uuid: state for state in seen.devices}
    (standing,) = by_uuid[uuid(1)].leases
    assert (standing.execution, standing.pid, standing.uid) == ("ab" * 8, os.getpid(), os.getuid())
    (process,) = by_uuid[uuid(0)].processes
    assert process.owner.user and process.execution == "" and not by_uuid[uuid(0)].leases
    loan.lease.release()
    assert not any(state.leases for state in survey(gpus).devices)


def seen_on(recorded: Recorded, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Result:
    monkeypatch.setattr("orchestrator.cli.gpus.Gpus", lambda: Gpus(nvml(recorded), folder / "locks"))
    monkeypatch.setattr("orchestrator.cli.gpus.console", lambda: Console(width=160, highlight=False, markup=False))
    return CliRunner().invoke(app, ["gpus", *options])


def test_the_command_shows_devices_strangers_slices_and_the_queue(
    own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = sliced()
    recorded.gpus[0].compute = [(os.getpid(), 3 * GiB)]
    gpus = Gpus(nvml(recorded), own_state / "locks")
    loan = gpus.lend("ab" * 8, Wanted(1), None, 0, print)
    shown = seen_on(recorded, own_state, monkeypatch)
    assert shown.exit_code == 0
    for text in (
        uuid(0),
        uuid(1, "MIG"),
        "in MIG mode",
        "3.0 GiB",
        f"pid {os.getpid()}",
        "lent to",
        "driver 580.95.05",
        "free",
    ):
        assert text in shown.output, text
    data = json.loads(seen_on(recorded, own_state, monkeypatch, "--json").output)
    lent = [state for state in data["devices"] if state["leases"]]
    assert [state["device"]["uuid"] for state in lent] == [device.uuid for device in loan.devices]
    loan.lease.release()


def test_what_a_process_calls_itself_does_nothing_to_the_terminal(
    own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "\x1b]0;evil\x07[bold]"
    with subprocess.Popen([hostile, "30"], executable="/bin/sleep") as process:
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.01)  # a program has its arguments a moment after it has closed what exec closes
        shown = seen_on(one(compute=[(process.pid, GiB)]), own_state, monkeypatch)
        process.kill()
    assert "\x1b" not in shown.output and "\x07" not in shown.output and "[bold]" in shown.output


def test_without_a_driver_the_command_says_so_and_exits_4(own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen_on(NONE, own_state, monkeypatch).exit_code == 4
    assert "no NVIDIA driver" in json.loads(seen_on(NONE, own_state, monkeypatch, "--json").output)["problem"]


# ---- what the driver needs inside ----


def test_a_slices_nodes_are_its_gpus_and_those_of_its_instances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gpu1/mig/gi1"
    (folder / "ci0").mkdir(parents=True)
    (folder / "access").write_text("DeviceFileMinor: 12\nDeviceFileMode: 292\n")
    (folder / "ci0/access").write_text("DeviceFileMinor: 13\nDeviceFileMode: 292\n")
    monkeypatch.setattr("executor.gpus.driver._CAPABILITIES", tmp_path)
    part = nvml(sliced()).machine.usable[1]
    assert own_nodes(part) == ["/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap12", "/dev/nvidia-caps/nvidia-cap13"]


def loaded_unified_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's module has a number, and its node is not made yet: no program has used CUDA since the boot."""
    (folder / "devices").write_text("Character devices:\n195 nvidia\n195 nvidiactl\n236 nvidia-uvm\n\nBlock devices:\n")
    monkeypatch.setattr("executor.gpus.driver._DEVICES", folder / "devices")


def test_the_module_for_unified_memory_is_loaded_by_the_drivers_own_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "devices").write_text("Character devices:\n195 nvidia\n")
    monkeypatch.setattr("executor.gpus.driver._DEVICES", tmp_path / "devices")
    assert unified_memory_major() is None
    program = tmp_path / "nvidia-modprobe"
    program.write_text(f'#!/bin/sh\ntest "$*" = "-u -c 0" && echo "236 nvidia-uvm" >>{tmp_path}/devices\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert unified_memory_major() == 236


def test_without_device_nodes_no_spec_is_made_and_the_remedy_is_named() -> None:
    with pytest.raises(SandboxUnavailable, match="nvidia-modprobe"):
        made(nvml(one()).machine.usable, "580.95.05")


def test_a_made_spec_has_nodes_and_libraries_and_no_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executor.gpus.driver._CONTROL", "/dev/null")
    loaded_unified_memory(tmp_path, monkeypatch)
    (tmp_path / "libcuda.so.580.95.05").write_bytes(b"")
    (tmp_path / "libcuda.so.1").symlink_to("libcuda.so.580.95.05")
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    (tmp_path / "libGLX_nvidia.so.0").write_bytes(b"")
    (device,) = made(nvml(one()).machine.usable, "580.95.05", [tmp_path])
    assert device.name == f"nvidia.com/gpu={uuid(0)}" and device.source == "made for driver 580.95.05"
    assert [node.path for node in device.edits.deviceNodes] == ["/dev/nvidia0"]
    control = {node.path: (node.type, node.major, node.minor) for node in device.spec.containerEdits.deviceNodes}
    assert control == {"/dev/null": (None, None, None), "/dev/nvidia-uvm": ("c", 236, 0)}, "whether or not it is there"
    mounts = {mount.containerPath: mount.hostPath for mount in device.spec.containerEdits.mounts}
    assert mounts == {
        "/run/nvidia/lib/libcuda.so.1": str(tmp_path / "libcuda.so.580.95.05"),
        "/run/nvidia/lib/libcuda.so.580.95.05": str(tmp_path / "libcuda.so.580.95.05"),
        "/run/nvidia/lib/libnvidia-ml.so.1": str(tmp_path / "libnvidia-ml.so.1"),
    }
    assert not device.edits.hooks and not device.spec.containerEdits.hooks


def test_device_memory_is_limited_by_the_kernel_where_it_counts_it() -> None:
    device = nvml(one()).machine.usable[0]
    capacity = "drm/0000:17:00.0/vram0 85899345920\ndrm/0000:03:00.0/vram0 8514437120\n"
    assert dmem_limit([device], 4 * GiB, capacity) == f"drm/0000:17:00.0/vram0 {4 * GiB}"
    assert dmem_limit([device], 4 * GiB, "drm/0000:03:00.0/vram0 8514437120") is None
    assert dmem_limit([replace(device, instance=(1, 0))], GiB, capacity) is None


# ---- how an engine is asked ----


@pytest.mark.parametrize(
    ("version", "refused"), [((1, 17, 7), True), ((1, 16, 2), True), ((1, 17, 8), False), (None, True)]
)
def test_a_toolkit_with_a_known_escape_is_refused(version: tuple[int, int, int] | None, refused: bool) -> None:
    assert (toolkit_problem(version) is not None) is refused


def test_an_engine_that_knows_cdi_is_asked_by_the_specs_own_names(tmp_path: Path) -> None:
    (tmp_path / "nvidia.yaml").write_text(
        """
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits: {deviceNodes: [{path: /dev/nvidia0, type: c, major: 195, minor: 0}]}
- name: all
  containerEdits:
    deviceNodes:
    - {path: /dev/nvidia0, type: c, major: 195, minor: 0}
    - {path: /dev/nvidia1, type: c, major: 195, minor: 1}
containerEdits: {deviceNodes: [{path: /dev/nvidiactl, type: c, major: 195, minor: 255}]}
"""
    )
    info = {"CDISpecDirs": [str(tmp_path)], "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}
    device = nvml(one()).machine.usable[0]
    assert device_request([device], info, (1, 18, 0)) == DeviceRequest(
        {"driver": "cdi", "device_ids": ["nvidia.com/gpu=0"]}, "CDI nvidia.com/gpu=0", frozenset({"195:0", "195:255"})
    )
    with pytest.raises(SandboxUnavailable, match="CVE-2025-23266"):
        device_request([device], info, (1, 17, 4))
    info["DiscoveredDevices"] = [{"Source": "cdi", "ID": "nvidia.com/gpu=1"}]
    with pytest.raises(SandboxUnavailable, match="nvidia-ctk cdi generate"):
        device_request([device], info, (1, 18, 0))


def test_an_engine_that_could_use_cdi_and_does_not_is_told_how() -> None:
    with pytest.raises(SandboxUnavailable, match=r"daemon\.json"):
        device_request(nvml(one()).machine.usable, {"ServerVersion": "27.1.0"}, (1, 18, 0))


def test_an_older_engine_is_asked_by_uuid_and_one_without_a_hook_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = nvml(one()).machine.usable[0]
    loaded_unified_memory(tmp_path, monkeypatch)
    asked = device_request([device], {"Runtimes": {"runc": {}, "nvidia": {}}}, (1, 17, 8))
    assert asked.nodes == {"195:254", "195:255", "236:0", "236:1"}, "which its hook makes where they are missing"
    assert asked.request == {"device_ids": [uuid(0)], "capabilities": [["gpu"]]}
    with pytest.raises(SandboxUnavailable, match="no NVIDIA runtime"):
        device_request([device], {"Runtimes": {"runc": {}}}, (1, 17, 8))


def test_gvisor_passes_on_only_the_drivers_that_it_knows(tmp_path: Path) -> None:
    known = tmp_path / "runsc"
    known.write_text("#!/bin/sh\necho 550.54.15\necho 580.95.05\n")
    known.chmod(0o755)
    assert nvproxy_problem("580.95.05", str(known)) is None
    assert "does not know the NVIDIA driver 999.1" in str(nvproxy_problem("999.1", str(known)))
    installed = subprocess.run(["runsc", "nvproxy", "list-supported-drivers"], capture_output=True, check=False)
    if installed.returncode != 0:
        assert "too old" in str(nvproxy_problem("580.95.05"))


# ---- the account ----


def test_device_time_is_counted_from_the_audit_log_by_user_and_day(own_state: Path) -> None:
    log = AuditLog(own_state / "audit.jsonl")
    log.append("lease", execution="a1", gpus=[uuid(0), uuid(1)], at_most_s=500.0)
    log.append("end", execution="a1", outcome="completed", gpu_seconds=200.5)
    log.append("end", execution="b2", outcome="completed")
    assert gpu_seconds(log.lines(), os.getuid()) == 200.5
    assert gpu_seconds(log.lines(), os.getuid() + 1) == 0
    running = log.append("lease", execution="c3", gpus=[uuid(0), uuid(1)], at_most_s=100.0)
    assert gpu_seconds(log.lines(), os.getuid()) == 400.5, (
        "one that runs, or was killed, counts with all that it may have"
    )
    assert gpu_seconds(log.lines(), os.getuid(), before=running) == 200.5
    log.append("end", execution="c3", outcome="denied")
    assert gpu_seconds(log.lines(), os.getuid()) == 200.5


def test_records_that_only_speak_of_device_time_are_not_counted(own_state: Path) -> None:
    log = AuditLog(own_state / "audit.jsonl")
    log.append("decision", execution="a1", rules=[{"requested": "gpu_seconds"}])
    log.append("dependencies", required=["gpu_seconds"])
    assert gpu_seconds(log.lines(), os.getuid()) == 0


def test_no_devices_are_no_machine() -> None:
    assert Machine().usable == ()


# ---- the report of `make test-gpu` ----

THREE = """
import pytest

def test_it_holds(record_property):
    record_property("waited", "3 s | and more")

def test_it_breaks():
    assert False

def test_it_needs_two():
    pytest.skip("one device")
"""
REPORTING = """
import sys
from pathlib import Path
import pytest
from tests import gpu_report
from tests.nvml_machines import nvml, one
gpu_report.REPORT = Path(sys.argv[1]) / "report.md"
options = ["-q", "-p", "no:cacheprovider", "--rootdir", sys.argv[1], "-c", "/dev/null", sys.argv[1]]
pytest.main(options, plugins=[gpu_report.Report(nvml(one()).machine)])
"""


def test_the_report_has_every_test_with_what_it_measured_or_why_it_did_not(tmp_path: Path) -> None:
    (tmp_path / "test_three.py").write_text(THREE)
    subprocess.run([sys.executable, "-c", REPORTING, str(tmp_path)], cwd=Path(__file__).parent.parent, check=False)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "- 3 of 3 tests came to an end" in lines
    assert lines[-3:] == [
        "| it holds | holds | 0 | waited: 3 s / and more |",
        "| it breaks | does not hold | 0 | – |",
        "| it needs two | skipped | 0 | one device |",
    ]
