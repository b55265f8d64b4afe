"""Who has what of the machine: claims across processes and users, that die with whoever holds them.

A claim is a ticket, a file in a folder that all users of the machine share, with a kernel lock (flock(2)) that its owner
holds for as long as the process lives. Tickets are numbered in the order of their coming; what they say is changed
under the folder's own lock, where nothing is done that could take long. A ticket that nobody holds locked, or of a process
that is gone (its children may have the lock still), is a dead one's and counts no more.

All who lend through the folder keep to it; it cannot keep away those who do not (on GPUs these are found on the devices
themselves). A ticket's owner is the file's owner, and all else that it says is its owner's word.
"""

import contextlib
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from executor.errors import InfrastructureError, SandboxUnavailable
from executor.ownership import alive, pid_namespace, start_ticks

_MAX_TICKET = 64 * 1024
_TICK = 0.25
"""Seconds between two looks while waiting: devices also become free without anybody's saying so."""
_SELDOM = 10
"""How many times longer those wait between two looks at most who have waited long, or are far behind."""
_PATIENCE = 20.0
"""Seconds to wait at most for the folder's lock, by those who do not wait for devices."""
_Uuid = Annotated[str, Field(pattern=r"^[A-Za-z0-9()/ -]{1,80}$")]


class Held(BaseModel):
    """What is lent: a device, or an amount of something countable."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    uuid: _Uuid
    share: Annotated[int, Field(ge=0, lt=1 << 60)] | None = None
    """How much of it (of a device and of memory: bytes), for one who shares it; None: all of it, for one alone."""


class Ticket(BaseModel):
    """What a claim says."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    pid: Annotated[int, Field(ge=0, lt=1 << 32)]
    started: int = 0
    """When the process started, in clock ticks since the boot."""
    namespace: Annotated[str, Field(max_length=40)] = ""
    """The pid namespace that `pid` is of."""
    execution: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
    since: Annotated[float, Field(ge=0, lt=1 << 40)]
    """Seconds since the epoch."""
    count: Annotated[int, Field(ge=1, le=64)]
    could: Annotated[tuple[_Uuid, ...], Field(max_length=512)] = ()
    """While it waits: the devices that would do. Whoever came later leaves these to it."""
    holds: Annotated[tuple[Held, ...], Field(max_length=64)] = ()
    container: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")] = ""
    """Where the devices are used."""


@dataclass(frozen=True)
class Claim:
    """A ticket of a living process."""

    number: int
    uid: int
    ticket: Ticket


@dataclass(frozen=True)
class Queue:
    """The living claims, in the order of their coming."""

    claims: tuple[Claim, ...]

    @property
    def holders(self) -> tuple[Claim, ...]:
        """Those who have devices."""
        return tuple(claim for claim in self.claims if claim.ticket.holds)

    @property
    def waiting(self) -> tuple[Claim, ...]:
        """Those who wait."""
        return tuple(claim for claim in self.claims if not claim.ticket.holds)


class Turn(BaseModel):
    """What somebody who waits would take now: `holds`, or nothing yet of `could`."""

    could: tuple[str, ...]
    holds: tuple[Held, ...] = ()
    why: str = ""
    """Why nothing yet, in a few words."""


Unwanted = Callable[[], str | None]
"""Asked again and again while something is waited for: why it is not wanted any more; None while it is."""
_ASKING = 0.1
"""Seconds between two such questions."""


class NotWanted(Exception):
    """Whoever waited was called off; it says why."""


class WantedCheck:
    """Asks, not too often, whether what is waited for is wanted still."""

    def __init__(self, unwanted: Unwanted | None) -> None:
        self._unwanted = unwanted
        self._asked = time.monotonic()

    def __call__(self) -> None:
        """Raises NotWanted."""
        if self._unwanted is not None and time.monotonic() >= self._asked + _ASKING:
            self._asked = time.monotonic()
            if (why := self._unwanted()) is not None:
                raise NotWanted(why)


Choose = Callable[[Queue, Sequence[Claim]], Turn]
"""What to take, given the other claims, and those of them who wait and came before."""
Look = Callable[[], Choose]
"""Looks at what there is, which may take its time, and says how to choose by what it saw."""


class Lease:
    """A claim. Released once, or by the end of the process."""

    def __init__(self, leases: "Leases", number: int, file: int, ticket: Ticket) -> None:
        self._leases = leases
        self._file: int | None = file
        self.number = number
        self.ticket = ticket

    def used_by(self, container: str) -> None:
        """Says in which container the devices are used."""
        with self._leases._alone():
            self._write(self.ticket.model_copy(update={"container": container}))

    def release(self) -> None:
        """Gives back what it holds."""
        if self._file is not None:
            self._leases._path(self.number).unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def _write(self, ticket: Ticket) -> None:
        """In place, for the lock is the file's; under the folder's lock, so that nobody reads half of it."""
        if self._file is None:
            raise RuntimeError("the lease was released")
        if ticket == self.ticket and os.fstat(self._file).st_size:
            return
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, ticket.model_dump_json().encode(), 0)
        self.ticket = ticket


class Leases:
    """The claims of one machine, in one folder."""

    def __init__(
        self, folder: Path, name: str = "gpu", things: str = "GPUs", tick: float = _TICK, trusting: bool = False
    ) -> None:
        """name: of the queue, of which a folder can have several. things: what is lent, for messages. tick: seconds between
        two looks of the first in the queue. trusting: in a folder that another user made, too, who could remove tickets."""
        self._folder = folder
        self._name = name
        self._ticket = re.compile(rf"{name}-([0-9]{{12,18}})")
        self._things = things
        self._tick = tick
        self._trusting = trusting

    def queue(self) -> Queue:
        """The living claims. Raises SandboxUnavailable."""
        if not self._folder.is_dir():
            return Queue(())
        with self._alone():
            return self._read(None)

    def take(
        self,
        execution: str,
        count: int,
        look: Look,
        wait: float,
        told: Callable[[str], None] = lambda text: None,
        unwanted: Unwanted | None = None,
    ) -> Lease:
        """Waits for its turn and for what is then chosen.

        told: hears the place in the queue, when it changes. Raises SandboxUnavailable when `wait` seconds were not enough,
        or the folder cannot be used; NotWanted when `unwanted` says why; and whatever `look` raises.
        """
        ask = WantedCheck(unwanted)
        self._make_folder()
        came = time.monotonic()
        deadline = came + wait
        lease: Lease | None = None
        said = ""
        try:
            while True:
                ask()
                choose = look()
                with self._alone(max(_PATIENCE, deadline - time.monotonic())):
                    # The ticket and its first wish appear at once: whoever comes later finds both.
                    lease = lease or self._enter(execution, count)
                    number = lease.number
                    queue = self._read(number)
                    ahead = [claim for claim in queue.waiting if claim.number < number]
                    turn = choose(queue, ahead)
                    lease._write(lease.ticket.model_copy(update={"could": turn.could, "holds": turn.holds}))
                if turn.holds:
                    return lease
                place = 1 + len(ahead)
                state = f"place {place} in the queue for {self._things}: {turn.why}"
                if time.monotonic() >= deadline:
                    raise SandboxUnavailable(f"no {self._things} became free within {wait:g} s ({state})")
                if state != said:
                    told(f"waiting: {state}")
                    said = state
                # Those far behind, or who have waited long, look less often.
                seldom = min(_SELDOM, place + (time.monotonic() - came))
                time.sleep(min(self._tick * seldom, max(0.0, deadline - time.monotonic())))
        except BaseException:
            if lease is not None:
                lease.release()
            raise

    def _enter(self, execution: str, count: int) -> Lease:
        """A new ticket, the last in the queue; called by whoever holds the folder's lock."""
        pid = os.getpid()
        ticket = Ticket(
            pid=pid,
            started=start_ticks(pid) or 0,
            namespace=pid_namespace(),
            execution=execution,
            since=time.time(),
            count=count,
        )
        number = max((claim.number for claim in self._read(None).claims), default=0) + 1
        try:
            while (file := self._new(number)) is None:
                number += 1  # a file that is nobody's ticket, and not this user's to remove
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(file, 0o644)
        except OSError as error:
            raise SandboxUnavailable(f"cannot queue for {self._things} in {self._folder}: {error.strerror}") from None
        lease = Lease(self, number, file, ticket)
        lease._write(ticket)
        return lease

    def _new(self, number: int) -> int | None:
        """A new ticket's file; None where there is one."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self._path(number), flags, 0o600)  # nobody else opens it before it is locked
        except FileExistsError:
            return None

    def _read(self, mine: int | None) -> Queue:
        """The living claims but one's own; called by whoever holds the folder's lock."""
        found = []
        for number, path in self._tickets():
            claim = None if number == mine else _living(number, path)
            if claim is not None:
                found.append(claim)
            elif number != mine:
                with contextlib.suppress(OSError):  # another user's, in a folder that keeps it to its owner
                    path.unlink()
        return Queue(tuple(found))

    def _tickets(self) -> list[tuple[int, Path]]:
        matched = ((self._ticket.fullmatch(path.name), path) for path in self._folder.iterdir())
        return sorted((int(match[1]), path) for match, path in matched if match)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._name}-{number:012d}"

    def _make_folder(self) -> None:
        """The folder is root's, or one's own where root has made none; only its owner could remove others' tickets."""
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self._folder.mkdir()
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise SandboxUnavailable(
                f"cannot queue for {self._things} in {self._folder}: {error.strerror} (as root: mkdir -m 1777 {self._folder}; "
                "docs/security.md has how it is made at every boot)"
            ) from None
        try:
            info = os.fstat(folder)
            if os.getuid() == 0 and info.st_uid != 0:
                os.fchown(folder, 0, 0)  # whoever was first after the boot made it
            elif info.st_uid not in (0, os.getuid()) and not (self._trusting and stat.S_IMODE(info.st_mode) == 0o1777):
                raise SandboxUnavailable(
                    f"{self._folder} is another user's (as root: chown root:root {self._folder}; docs/security.md has how it is "
                    "made at every boot)"
                )
            if os.getuid() in (0, info.st_uid) and stat.S_IMODE(info.st_mode) != 0o1777:
                os.fchmod(folder, 0o1777)
        finally:
            os.close(folder)

    @contextmanager
    def _alone(self, patience: float = _PATIENCE) -> Iterator[None]:
        """Nobody else reads or writes tickets meanwhile. Raises InfrastructureError when another keeps the lock so long."""
        path = self._folder / f"{self._name}.lock"
        deadline = time.monotonic() + patience
        try:
            file = self._locked(path, deadline)
        except OSError as error:
            raise InfrastructureError(f"the queue for {self._things} {path}: {error.strerror}") from None
        try:
            yield
        finally:
            os.close(file)

    def _locked(self, path: Path, deadline: float) -> int:
        while True:
            with contextlib.suppress(FileExistsError, PermissionError):
                new = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                os.fchmod(new, 0o644)  # whatever the umask is
                os.close(new)
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise InfrastructureError(f"{path} is not a plain file: as root, remove it")
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_still(file, path):
                    return file
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InfrastructureError(
                        f"the queue for {self._things} was held by another process all the time (fuser {path})"
                    ) from None
            except BaseException:
                os.close(file)
                raise
            os.close(file)
            time.sleep(0.002)


def _is_still(file: int, path: Path) -> bool:
    """Whether what was locked is what everybody else will lock: its owner may have removed it meanwhile."""
    try:
        there, held = os.lstat(path), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def _living(number: int, path: Path) -> Claim | None:
    """The claim in a ticket that its owner holds locked; None for a dead one's."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        text, uid = os.pread(file, _MAX_TICKET, 0), os.fstat(file).st_uid
    finally:
        os.close(file)
    try:
        ticket = Ticket.model_validate_json(text)
    except ValidationError:
        return None
    if ticket.namespace == pid_namespace() and not alive(ticket.pid, ticket.started):
        return None  # somebody else holds the lock of a dead one's ticket: a child of its, or whoever opened it
    return Claim(number, uid, ticket)


def held_by(claims: Sequence[Claim], uid: int) -> int:
    """How many devices a user's claims hold."""
    return sum(len(claim.ticket.holds) for claim in claims if claim.uid == uid)
