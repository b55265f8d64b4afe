"""Whose turn it is to run: the machine's cores and memory, lent to runs across processes and users.

A run holds its share of the cores and of the memory while its container is there; one with GPUs takes it when it has these.
Of one user's runs only the first competes with the other users' firsts, for which the kernel keeps the rest waiting in the
order of their coming (flock(2) on a file of that user's): a thousand that wait cost nothing. What becomes free goes to the
user who holds least, then to who came first. Nobody who fits is passed by one that came later, so a
large run is not starved by small ones.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from executor.errors import SandboxUnavailable
from executor.leases import Choose, Claim, Held, Lease, Leases, Queue, Turn, Unwanted, WantedCheck
from policies.model import Ceiling
from policies.state import lock_dir, state_dir

CORES, MEMORY = "cores", "memory"
"""What is lent: thousandths of a core, and bytes."""
_TICK = 0.01
"""Seconds between two looks of a user's first."""
_ASKING = 0.1
"""Seconds between two looks at whether a run that waits for its user's others is still wanted."""
_OVERLAP = 2.0
"""Cores lent for every core there is: a run starts, loads and writes for a good part of its time."""
_LONGEST = 7 * 86400.0


@dataclass(frozen=True)
class Room:
    """What is lent in all, and to one user."""

    cores: float
    memory: int
    """Bytes."""
    per_user: int | None = None
    """Runs of one user at once."""

    @classmethod
    def here(cls, ceilings: Iterable[Ceiling] = ()) -> "Room":
        """This machine's, as far as its ceilings let it be lent."""
        given = [ceiling.runs for ceiling in ceilings if ceiling.runs is not None]
        cores = _OVERLAP * (os.cpu_count() or 1)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(
            min((runs.cores for runs in given if runs.cores is not None), default=cores),
            min((runs.memory for runs in given if runs.memory is not None), default=memory),
            min((runs.per_user for runs in given if runs.per_user is not None), default=None),
        )


class Places:
    """The machine's queue of runs."""

    def __init__(self, room: Room, folder: Path | None = None, mine: Path | None = None) -> None:
        """folder: shared by the machine's users; mine: this user's own."""
        self.room = room
        self._leases = Leases(folder or lock_dir(), "run", "cores and memory", _TICK, trusting=True)
        self._mine = mine or state_dir()

    def queue(self) -> Queue:
        """Who runs, and each user's first who waits."""
        return self._leases.queue()

    def take(
        self,
        execution: str,
        cores: float,
        memory: int,
        told: Callable[[str], None] = lambda text: None,
        unwanted: Unwanted | None = None,
        beside: bool = False,
    ) -> Lease:
        """Waits until such a run has its turn, and holds its place until it is released.

        told: hears what it waits for. beside: it does not queue behind this user's others, as it holds what they do not wait for.
        Raises NotWanted when `unwanted` says why, SandboxUnavailable when nobody can queue.
        """

        def look() -> Choose:
            return lambda queue, ahead: turn(self.room, cores, memory, os.getuid(), queue, ahead)

        if beside:
            return self._leases.take(execution, 1, look, _LONGEST, told, unwanted)
        first, ask = _InTurn(self._mine / "turn.lock"), WantedCheck(unwanted)
        try:
            if not first.wait(_ASKING):
                told("waiting: other runs of this user's are before this one")
                while not first.wait(_ASKING):
                    ask()
            return self._leases.take(execution, 1, look, _LONGEST, told, unwanted)
        finally:
            first.over()


def turn(room: Room, cores: float, memory: int, uid: int, queue: Queue, ahead: Sequence[Claim]) -> Turn:
    """Whether a run of that user's goes now; a pure function of what was seen."""
    running = _runs(queue, uid)
    if room.per_user is not None and running >= room.per_user:
        return Turn(could=(), why=f"this user may run {room.per_user} at once")
    before = {claim.number for claim in ahead}
    for other in queue.waiting:
        theirs = _runs(queue, other.uid)
        if other.ticket.could and (theirs < running or (theirs == running and other.number in before)):
            return Turn(could=(CORES,), why="another user's is next")
    held = [held for claim in queue.holders for held in claim.ticket.holds]
    lent = {name: sum(one.share or 0 for one in held if one.uuid == name) for name in (CORES, MEMORY)}
    wish = {CORES: round(1000 * cores), MEMORY: memory}
    most = {CORES: round(1000 * room.cores), MEMORY: room.memory}
    full = [name for name in wish if lent[name] + wish[name] > most[name]]
    if full and held:  # one that is larger than everything there is runs alone
        return Turn(could=(CORES,), why=f"no {' and '.join(full)} left beside {len(queue.holders)} running")
    return Turn(could=(), holds=tuple(Held(uuid=name, share=share) for name, share in wish.items()))


def _runs(queue: Queue, uid: int) -> int:
    return sum(claim.uid == uid for claim in queue.holders)


class _InTurn:
    """The wait for a file's lock, which whoever comes first has first, and which can be given up."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise SandboxUnavailable(f"cannot queue in {path}: {error.strerror}") from None
        self._locked = threading.Event()
        self._guard = threading.Lock()
        self._over = False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._locked.set()
        except BlockingIOError:
            # A thread, for the kernel's own queue has no time limit; it ends with the turn, wanted or not.
            threading.Thread(target=self._block, daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Whether it is its turn, within that time."""
        return self._locked.wait(seconds)

    def over(self) -> None:
        """Lets the next one have its turn, now or as soon as this one's comes."""
        with self._guard:
            self._over = True
            if self._locked.is_set():
                os.close(self._file)

    def _block(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        with self._guard:
            self._locked.set()
            if self._over:
                os.close(self._file)
