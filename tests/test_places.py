"""The machine's queue of runs: what is lent together, in which order, and to whom."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import SandboxUnavailable
from executor.executor import Executor
from executor.experiment import Experiment, Outcome
from executor.leases import Claim, Held, NotWanted, Queue, Ticket
from executor.places import Places, Room, turn
from policies.audit_check import verify
from policies.decision import Request
from policies.model import Ceiling, RunsCeiling
from tests.conftest import Bench, Recorded

ROOM = Room(4.0, 8 << 30)
GiB = 1 << 30
_ROOT = Path(__file__).parent.parent


def claim(number: int, uid: int, cores: float = 0.0, memory: int = 0, could: bool = True) -> Claim:
    """One that runs, or waits where it holds nothing."""
    holds = (Held(uuid="cores", share=round(1000 * cores)), Held(uuid="memory", share=memory)) if cores else ()
    wish = ("cores",) if could and not cores else ()
    return Claim(number, uid, Ticket(pid=1, execution="ab", since=0, count=1, could=wish, holds=holds))


def goes(claims: list[Claim], number: int, uid: int, cores: float = 1, memory: int = GiB, room: Room = ROOM) -> bool:
    queue = Queue(tuple(sorted(claims, key=lambda one: one.number)))
    ahead = [one for one in queue.waiting if one.number < number]
    return bool(turn(room, cores, memory, uid, queue, ahead).holds)


def test_runs_go_as_long_as_their_cores_and_their_memory_fit() -> None:
    assert goes([claim(1, 7, 3, GiB)], 2, 7)
    assert not goes([claim(1, 7, 3.5, GiB)], 2, 7)
    assert goes([claim(1, 7, 1, 7 * GiB)], 2, 7)
    assert not goes([claim(1, 7, 1, 7 * GiB)], 2, 7, memory=GiB + 1)


def test_one_that_is_larger_than_everything_there_is_runs_alone() -> None:
    assert goes([], 1, 7, cores=64, memory=99 * GiB)
    assert not goes([claim(1, 8, 0.1, GiB)], 2, 7, cores=64)


def test_what_is_free_goes_to_the_user_who_holds_least_and_then_to_who_came_first() -> None:
    running = [claim(1, 7, 1, GiB), claim(2, 7, 1, GiB), claim(3, 8, 1, GiB)]
    assert not goes([*running, claim(5, 8)], 4, 7), "another user holds less"
    assert goes([*running, claim(4, 7)], 5, 8)
    assert not goes([*running[1:], claim(4, 8)], 5, 7), "as much, and later"


def test_a_large_run_that_waits_is_not_passed_by_small_ones() -> None:
    assert not goes([claim(1, 7, 3, GiB), claim(2, 8)], 3, 9)


def test_whoever_is_at_a_ceiling_keeps_nobody_waiting() -> None:
    room = Room(4.0, 8 * GiB, per_user=1)
    assert not goes([claim(1, 7, 1, GiB)], 2, 7, room=room)
    assert goes([claim(1, 7, 1, GiB), claim(2, 7, could=False)], 3, 8, room=room)


_WISHES = st.tuples(st.integers(0, 3), st.sampled_from([0.5, 1, 2, 9]))


@given(
    running=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.5, 1, 2])), max_size=4),
    waiting=st.lists(_WISHES, min_size=1, max_size=4, unique_by=lambda wish: wish[0]),
)
def test_somebody_goes_unless_the_next_one_does_not_fit_and_never_two_at_once(
    running: list[tuple[int, float]], waiting: list[tuple[int, float]]
) -> None:
    holders = [claim(number, uid, cores, GiB) for number, (uid, cores) in enumerate(running, 1)]
    tickets = [claim(10 + number, uid) for number, (uid, _) in enumerate(waiting)]
    going = [
        cores
        for ticket, (uid, cores) in zip(tickets, waiting, strict=True)
        if goes([*holders, *(other for other in tickets if other is not ticket)], ticket.number, uid, cores)
    ]
    assert len(going) <= 1
    if not running:
        assert len(going) == 1
    if going and running:
        assert sum(cores for _, cores in running) + going[0] <= ROOM.cores


def test_a_box_says_how_much_is_lent_and_the_strictest_counts() -> None:
    low = Ceiling(runs=RunsCeiling(cores=1.5, per_user=3))
    assert Room.here([low, Ceiling(runs=RunsCeiling.model_validate({"memory": "1GiB", "per_user": 2}))]) == Room(
        1.5, GiB, 2
    )
    assert Room.here().cores >= 1 and Room.here().memory > GiB and Room.here().per_user is None


def test_a_second_user_runs_where_the_first_made_the_folder(open_folder: Path) -> None:
    open_folder.chmod(0o1777)

    def running(uid: int) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                os.setuid(uid)
                Places(ROOM, open_folder / "locks", open_folder / f"user{uid}").take("ab", 1, 1).release()
                os._exit(0)
            finally:
                os._exit(1)
        return os.waitpid(pid, 0)[1]

    assert (running(1234), running(4321)) == (0, 0)
    assert (open_folder / "locks").stat().st_uid == 1234


# ---- real processes ----

RUNNER = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path
    from executor.places import Places, Room
    folder, mine, uid, count, hold = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
    os.setuid(uid)
    places = Places(Room(2.0, 1 << 40), folder, mine)
    print("up", flush=True)
    sys.stdin.readline()
    for n in range(count):
        place = places.take("ab", 1.0, 1 << 20)
        print(time.monotonic(), uid, "in", flush=True)
        time.sleep(hold)
        print(time.monotonic(), uid, "out", flush=True)
        place.release()
""")


class Runners:
    """Processes of users that take places, `count` times one after the other, once they are let go."""

    def __init__(self, folder: Path, users: list[int], count: int, hold: float) -> None:
        self.all = []
        for uid in users:
            mine = folder / f"user{uid}"
            mine.mkdir(exist_ok=True)
            os.chown(mine, uid, uid)
            words = [sys.executable, "-c", RUNNER, str(folder / "runs"), str(mine), str(uid), str(count), str(hold)]
            made = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
            self.all.append(made)
        for made in self.all:
            assert made.stdout is not None and made.stdout.readline() == "up\n"

    def go(self) -> None:
        for made in self.all:
            assert made.stdin is not None
            made.stdin.write("\n")
            made.stdin.flush()

    def said(self) -> list[tuple[float, int, str]]:
        lines = [line.split() for made in self.all for line in made.communicate()[0].splitlines()]
        return sorted((float(at), int(uid), what) for at, uid, what in lines)


def test_never_more_than_fit_and_users_take_turns(open_folder: Path) -> None:
    Places(Room(2.0, 1 << 40), open_folder / "runs", open_folder).take("ab", 1, 1).release()  # root makes the folder
    runners = Runners(open_folder, [1234] * 8 + [4321] * 2, count=4, hold=0.05)
    runners.go()
    said = runners.said()
    assert Counter(uid for _, uid, what in said if what == "in") == {1234: 32, 4321: 8}
    inside: Counter[int] = Counter()
    both = 0
    for _, uid, what in said:
        inside[uid] += 1 if what == "in" else -1
        assert inside.total() <= 2
        both += inside[1234] == inside[4321] == 1
    assert both >= 6, "eight processes of one user do not outweigh two of another's"


def test_a_place_dies_with_its_owner_and_so_does_a_turn(open_folder: Path) -> None:
    runners = Runners(open_folder, [0] * 6, count=1, hold=60)
    runners.go()
    places = Places(Room(2.0, 1 << 40), open_folder / "runs", open_folder / "user0")
    until = time.monotonic() + 20
    while len(places.queue().holders) < 2 or not places.queue().waiting:
        assert time.monotonic() < until
        time.sleep(0.01)
    for made in runners.all:
        made.send_signal(signal.SIGKILL)
        made.wait()
    place = places.take("cd", 2.0, 1)
    assert [one.ticket.execution for one in places.queue().holders] == ["cd"]
    place.release()


def test_a_run_that_is_called_off_gives_up_its_turn_wherever_it_waits(tmp_path: Path) -> None:
    places = Places(Room(1.0, 1 << 40), tmp_path / "runs", tmp_path)
    held = places.take("ab", 1, 1)
    off = threading.Event()
    ended: list[str] = []

    def wait() -> None:
        with pytest.raises(NotWanted, match="enough"):
            places.take("cd", 1, 1, unwanted=lambda: "enough" if off.is_set() else None)
        ended.append("off")

    threads = [threading.Thread(target=wait) for _ in range(5)]  # the first is in turn, the others behind it
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    off.set()
    for thread in threads:
        thread.join(10)
    assert len(ended) == 5
    held.release()
    places.take("ef", 1, 1).release()


def test_a_folder_that_is_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(SandboxUnavailable, match="cannot queue for cores and memory in"):
        Places(ROOM, tmp_path / "runs", tmp_path).take("ab", 1, 1)


# ---- whole runs ----


@pytest.fixture
def room(bench: Bench, own_state: Path) -> tuple[Bench, Places]:
    """A bench whose runs queue for two cores, one run of the default policy."""
    places = Places(Room(2.0, 1 << 40))
    bench.executor = Executor(bench.backend, bench.audit, places=places)
    return bench, places


def test_a_run_waits_for_its_place_and_its_clock_begins_after_it(room: tuple[Bench, Places]) -> None:
    bench, places = room
    held = places.take("ab", 2, 1)
    threading.Timer(1.0, held.release).start()
    execution = bench.run("import time; time.sleep(0.5)", wall="2s")
    assert execution.outcome is Outcome.COMPLETED, execution.message
    assert execution.timings.queue_s > 0.8 and places.queue().claims == ()


def test_runs_that_wait_for_each_other_lose_nothing_and_leave_nothing(room: tuple[Bench, Places]) -> None:
    bench, places = room
    ended = []

    def one(number: int) -> None:
        sink = Recorded()
        done = bench.executor.run(Experiment(code=f"print({number})"), bench.policy, Request(), sink)
        ended.append((done.outcome, int(sink.stdout)))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(number for _, number in ended) == list(range(12))
    assert {outcome for outcome, _ in ended} == {Outcome.COMPLETED}
    assert bench.left() == [] and places.queue().claims == () and verify(bench.audit.path).ok


def test_a_run_called_off_while_it_waits_is_cancelled_and_recorded(room: tuple[Bench, Places]) -> None:
    bench, places = room
    held = places.take("ab", 2, 1)
    execution = bench.executor.run(
        Experiment(code="print(1)"), bench.policy, Request(), Recorded(), unwanted=lambda: "the sweep has ended"
    )
    held.release()
    assert (execution.outcome, execution.message) == (Outcome.CANCELLED, "the sweep has ended")
    assert [record["event"] for record in bench.audit.records()] == ["decision", "end"]


def test_a_run_that_cannot_queue_is_recorded_and_refused(room: tuple[Bench, Places], own_state: Path) -> None:
    bench, _ = room
    (own_state / "locks").write_text("")
    with pytest.raises(SandboxUnavailable, match="cannot queue"):
        bench.run("print(1)")
    assert [record["event"] for record in bench.audit.records()] == ["decision", "end"]
