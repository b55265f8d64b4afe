"""The queue for GPUs: many processes and users, kill -9, and nobody is given what another has."""

import fcntl
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from executor import leases
from executor.errors import InfrastructureError, SandboxUnavailable
from executor.gpus.choice import Wanted
from executor.gpus.lending import Gpus, Loan
from executor.leases import Leases
from tests.nvml_machines import GiB, Gpu, Recorded, eight, nvml, uuid

# A process of its own that takes devices of a recorded machine, says what it got, and holds it until told to end.
TAKER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from executor.gpus.choice import Wanted
    from executor.gpus.lending import Gpus
    from tests.nvml_machines import Gpu, Recorded, nvml, uuid
    folder, devices, count, wait, hold = Path(sys.argv[1]), *map(float, sys.argv[2:])
    machine = Recorded(*(Gpu(uuid(n), minor=n) for n in range(int(devices))))
    def told(text): print(text, flush=True)
    loan = Gpus(nvml(machine), folder).lend("ab" * 8, Wanted(int(count)), None, wait, told)
    print("got", time.monotonic(), *(device.uuid for device in loan.devices), flush=True)
    time.sleep(hold)
    print("gave", time.monotonic(), flush=True)
    loan.lease.release()
""")


@contextmanager
def taker(
    folder: Path, devices: int = 1, count: int = 1, wait: float = 60, hold: float = 60
) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", TAKER, str(folder), *map(str, (devices, count, wait, hold))],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def line(process: "subprocess.Popen[str]") -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def single(folder: Path, **answers: object) -> Gpus:
    return Gpus(nvml(Recorded(Gpu(uuid(0), **answers))), folder)  # type: ignore[arg-type]


def lend(gpus: Gpus, wait: float = 0, wanted: Wanted = Wanted(1), per_user: int | None = None) -> Loan:  # noqa: B008
    return gpus.lend("cd" * 8, wanted, per_user, wait, lambda text: None)


def test_a_device_is_one_processs_at_a_time(tmp_path: Path) -> None:
    with taker(tmp_path) as holder:
        assert line(holder)[2] == uuid(0)
        with pytest.raises(SandboxUnavailable, match=r"within 0 s \(place 1 in the queue for GPUs: lent\)"):
            lend(single(tmp_path))


def test_a_lease_dies_with_its_owner_whatever_kills_it(tmp_path: Path) -> None:
    with taker(tmp_path) as holder:
        line(holder)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        lend(single(tmp_path)).lease.release()
    assert list(tmp_path.iterdir()) == [tmp_path / "gpu.lock"], "the dead one's ticket is gone"


def test_a_lease_survives_the_end_of_its_owners_children(tmp_path: Path) -> None:
    loan = lend(single(tmp_path))
    subprocess.run(["true"], check=True)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(SandboxUnavailable):
        lend(single(tmp_path))
    loan.lease.release()
    lend(single(tmp_path)).lease.release()


def test_devices_go_out_in_the_order_of_coming(tmp_path: Path) -> None:
    with taker(tmp_path, hold=60) as first:
        line(first)
        with taker(tmp_path, hold=0.1) as second:
            assert "place 1 in the queue" in " ".join(line(second))
            with taker(tmp_path, hold=0.1) as third:
                assert "place 2 in the queue" in " ".join(line(third))
                first.kill()
                got = [
                    next(words for words in iter(lambda p=p: line(p), []) if words[0] == "got") for p in (second, third)
                ]
                assert float(got[0][1]) < float(got[1][1])


def test_one_who_wants_many_is_not_overtaken_by_those_who_want_few(tmp_path: Path) -> None:
    with taker(tmp_path, devices=2, count=1, hold=2.0) as holder:
        line(holder)
        with taker(tmp_path, devices=2, count=2, hold=0.3) as large:
            assert "place 1" in " ".join(line(large))
            with taker(tmp_path, devices=2, count=1, hold=0.1) as small:  # a device is free, and kept for `large`
                assert "kept for who came before" in " ".join(line(small))
                assert line(large)[0] == "got"
                last = next(words for words in iter(lambda: line(small), []) if words[0] == "got")
                assert last


def test_those_whose_devices_nobody_before_them_could_use_do_not_wait(tmp_path: Path) -> None:
    gpus = Gpus(nvml(eight()), tmp_path)
    held = lend(gpus, wanted=Wanted(5, memory=40 * GiB))  # one large device is left
    queue = Leases(tmp_path)
    with queue._alone():
        waiting = queue._enter("ef" * 8, 2)
        waiting._write(waiting.ticket.model_copy(update={"could": tuple(uuid(n) for n in range(6))}))
    lend(gpus).lease.release()  # a small one
    with pytest.raises(SandboxUnavailable, match="kept for who came before"):
        lend(gpus, wanted=Wanted(1, memory=40 * GiB))
    waiting.release()
    lend(gpus, wanted=Wanted(1, memory=40 * GiB)).lease.release()
    held.lease.release()


def test_thirty_processes_and_kill_9_never_share_a_device_and_lose_none(tmp_path: Path) -> None:
    chaos = random.Random(20261123)
    victims = set(chaos.sample(range(30), 6))
    processes = []
    for number in range(30):
        hold = 600 if number in victims else chaos.uniform(0.0, 0.15)  # a victim's device is free by its death alone
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", TAKER, str(tmp_path), "3", str(chaos.choice((1, 1, 2))), "120", str(hold)],
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parent.parent,
            )
        )
    killed = [processes[number] for number in sorted(victims)]
    for process in killed:
        assert line(process), "in the queue, or holding devices"
        process.kill()
    spans = []
    for process in processes:
        words = [text.split() for text in process.communicate(timeout=120)[0].splitlines()]
        got = next((found for found in words if found[0] == "got"), None)
        gave = next((found for found in words if found[0] == "gave"), None)
        if process not in killed:
            assert got and gave, "everybody who was not killed had a turn"
        if got and gave:
            spans += [(device, float(got[1]), float(gave[1])) for device in got[2:]]
    for device in {span[0] for span in spans}:
        turns = sorted((began, ended) for name, began, ended in spans if name == device)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(turns)), "two had it at once"
    assert Leases(tmp_path).queue().claims == ()


def test_a_user_at_the_boxs_ceiling_waits_and_holds_nobody_up(tmp_path: Path) -> None:
    gpus = Gpus(nvml(eight()), tmp_path)
    first = lend(gpus, per_user=1)
    with pytest.raises(SandboxUnavailable, match="may hold 1 at once"):
        lend(gpus, per_user=1)
    second = lend(gpus, per_user=2)
    first.lease.release()
    second.lease.release()


def test_another_users_lease_holds_and_cannot_be_taken_away(open_folder: Path) -> None:
    folder = open_folder / "locks"
    lend(single(folder)).lease.release()  # the folder is root's
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            lend(single(folder))
            os.write(told, b"!")
            time.sleep(60)
        finally:
            os._exit(1)
    try:
        assert os.read(ready, 1) == b"!"
        (claim,) = Leases(folder).queue().holders
        assert claim.uid == 65534
        with pytest.raises(SandboxUnavailable):
            lend(single(folder))
        assert oct(folder.stat().st_mode & 0o7777) == "0o1777"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    lend(single(folder)).lease.release()


def as_nobody(act: Callable[[], str]) -> str:
    """What `act` answers as a user without rights, in a process of its own."""
    answer, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            os.write(told, act().encode())
        finally:
            os._exit(0)
    os.close(told)
    os.waitpid(pid, 0)
    with os.fdopen(answer) as file:
        return file.read()


def test_a_folder_that_another_user_made_is_refused_by_users_and_mended_by_root(open_folder: Path) -> None:
    folder = open_folder / "locks"
    folder.mkdir()
    os.chown(folder, 1234, 1234)

    def refused() -> str:
        try:
            lend(single(folder))
        except SandboxUnavailable as error:
            return str(error)
        return "lent"

    assert "chown root:root" in as_nobody(refused)
    lend(single(folder)).lease.release()
    assert (folder.stat().st_uid, oct(folder.stat().st_mode & 0o7777)) == (0, "0o1777")
    assert as_nobody(refused) == "lent"


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"\xff" * 100, json.dumps({"pid": 1, "holds": "all"}).encode(), b"1" * 100_000]
)
def test_a_ticket_that_says_nonsense_takes_no_device(text: bytes, tmp_path: Path) -> None:
    lend(single(tmp_path)).lease.release()
    with (tmp_path / "gpu-000000000001").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(text)
        file.flush()
        lend(single(tmp_path)).lease.release()


@pytest.mark.parametrize("number", ["999999999999", "999999999999999999", "000000000001"])
def test_a_file_that_is_no_ticket_and_cannot_be_removed_stops_nobody(number: str, open_folder: Path) -> None:
    folder = open_folder / "locks"
    lend(single(folder)).lease.release()
    (folder / f"gpu-{number}").write_text("")  # root's, in a sticky folder

    def first_and_second() -> str:
        held = lend(single(folder))
        try:
            lend(single(folder))
        except SandboxUnavailable as error:
            return str(error)
        finally:
            held.lease.release()
        return "lent twice"

    assert "lent" in as_nobody(first_and_second) != "lent twice"


def test_another_users_ticket_counts_where_proc_does_not_show_him(tmp_path: Path, open_folder: Path) -> None:
    """hidepid, proc(5)."""
    hidden = "import os, subprocess; from tests.test_leases import hidden_from; import sys; sys.exit(hidden_from(sys.argv[1]))"
    folder = open_folder / "locks"
    held = lend(single(folder))
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", hidden, str(folder)],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True,
    )  # fmt: skip
    held.lease.release()
    assert done.returncode == 0, done.stdout + done.stderr


def hidden_from(folder: str) -> int:
    """In a mount namespace of its own: 0 when a user who cannot see root's processes is not lent what root has."""
    subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)

    def refused() -> str:
        assert not Path(f"/proc/{os.getppid()}").exists()
        try:
            lend(single(Path(folder)))
        except SandboxUnavailable as error:
            return str(error)
        return "lent twice"

    return 0 if "GPU" in as_nobody(refused) else 1


def test_links_in_the_folder_are_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    folder = tmp_path / "locks"
    folder.mkdir(mode=0o1777)
    (folder / "gpu-000000000007").symlink_to(target)
    lend(single(folder)).lease.release()
    assert target.read_text() == "precious"


def test_a_process_that_was_stopped_with_the_queue_in_its_hand_is_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_PATIENCE", 0.2)
    lend(single(tmp_path)).lease.release()
    with (tmp_path / "gpu.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InfrastructureError, match=r"held by another process .*gpu\.lock"):
            lend(single(tmp_path))
        threading.Timer(1.0, lambda: fcntl.flock(file, fcntl.LOCK_UN)).start()
        lend(single(tmp_path), wait=30).lease.release()  # one who waits for devices waits for this as well


def test_a_device_that_others_use_without_asking_is_passed_over_until_they_leave(tmp_path: Path) -> None:
    machine = Recorded(Gpu(uuid(0), compute=[(os.getpid(), 30 * GiB)]))
    gpus = Gpus(nvml(machine), tmp_path)
    with pytest.raises(SandboxUnavailable, match="others hold 30720 MiB on it"):
        lend(gpus)
    machine.gpus[0].compute = []
    lend(gpus).lease.release()


def test_a_device_is_shared_within_the_shares_and_no_further(tmp_path: Path) -> None:
    gpus = single(tmp_path)
    shared = Wanted(1, share=30 * GiB)
    first, second = lend(gpus, wanted=shared), lend(gpus, wanted=shared)
    assert first.shared and first.devices == second.devices
    with pytest.raises(SandboxUnavailable, match="shared out"):
        lend(gpus, wanted=shared)
    with pytest.raises(SandboxUnavailable, match="lent"):
        lend(gpus)
    first.lease.release()
    second.lease.release()
    lend(gpus).lease.release()
