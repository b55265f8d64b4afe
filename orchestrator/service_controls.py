"""What the dashboard may do: start a sprint, see which run, stop one. The same things that the command line does.

A sprint is `labsandbox resume` in a process of its own, on a folder that was made for it. Who is at a sprint is read from
the lock on its journal, so sprints that were started elsewhere are known as well.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from pydantic import ValidationError

from executor.errors import ExecutorError
from executor.gpus.survey import Survey, user_name
from executor.observe import Cgroup
from executor.ownership import alive, start_ticks
from orchestrator.advice import advised_goal
from orchestrator.agents.choice import AgentsChoice
from orchestrator.child import last_words, start
from orchestrator.errors import UsageProblem
from orchestrator.journal import EVENTS
from orchestrator.lab_setup import LabOptions
from orchestrator.research_team import AIResearchTeam
from orchestrator.search.spec import SPEC
from orchestrator.upkeep import running as running_containers
from policies.model import PartialLimits, PolicyError, load_policy
from results.dashboard.controls import Process, Refused, Wish
from results.store import Store, StoreError

MOST_STARTED = 8
"""Sprints that were started here and run at the same time."""
_FRESH = 0.4
_CONTAINERS_FRESH = 5.0
_SEED_END = 2**32


@dataclass
class _Started:
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    """Its standard error."""
    last_words: str = ""


class ServiceControls:
    """`results.dashboard.controls.Controls` for the sprints of one results folder."""

    def __init__(self, results: Path, agents: AgentsChoice = "auto", gpus: Callable[[], Survey] | None = None) -> None:
        """gpus: a look at this machine's devices; None: there are none to look at."""
        self._gpus = gpus
        self._results, self._agents = results.absolute(), agents
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._started: dict[str, _Started] = {}
        self._running: dict[str, Process] = {}
        self._looked = float("-inf")
        self._groups: dict[int, Cgroup] = {}
        self._groups_looked = float("-inf")

    # ---- who is at what ----

    def running(self) -> Mapping[str, Process]:
        """The sprints that a process is at."""
        with self._lock:
            if time.monotonic() - self._looked > _FRESH:
                self._reap()
                self._running = self._find()
                self._looked = time.monotonic()
            return self._running

    def _find(self) -> dict[str, Process]:
        root = self._results.resolve()
        found: dict[str, Process] = {}
        at_work = {run: one.process.pid for run, one in self._started.items() if one.process.returncode is None}
        for run, pid in {**at_work, **dict(_journals_held(root))}.items():
            with contextlib.suppress(OSError, psutil.Error):
                uid = Path(f"/proc/{pid}").stat().st_uid
                stoppable = uid == os.getuid() and _is_a_sprints(pid)
                found[run] = Process(pid, user_name(uid), psutil.Process(pid).create_time(), stoppable)
        counts = [process.pid for process in found.values()]
        # A process that is at several sprints would end them all.
        return {
            run: one if counts.count(one.pid) == 1 else Process(one.pid, one.user, one.since, False)
            for run, one in found.items()
        }

    def _reap(self) -> None:
        for one in self._started.values():
            if one.process.poll() is not None and not one.log.closed:
                one.last_words = last_words(one.log) if one.process.returncode else ""
                one.log.close()

    def last_words(self, sprint: str) -> str:
        """The last line of a sprint that was started here and ended badly."""
        self.running()
        with self._lock:
            started = self._started.get(sprint)
            return started.last_words if started else ""

    def sample(self, sprint: str) -> Mapping[str, float] | None:
        """What the sprint's container uses now."""
        process = self.running().get(sprint)
        if process is None:
            return None
        with self._lock:
            group = self._groups.get(process.pid)
            sample = group.sample() if group else {}
            if not sample and time.monotonic() - self._groups_looked > _CONTAINERS_FRESH:
                self._groups = _groups()
                self._groups_looked = time.monotonic()
                group = self._groups.get(process.pid)
                sample = group.sample() if group else {}
        if self._gpus is not None:
            with contextlib.suppress(ExecutorError, OSError):
                sample |= on_gpus(self._gpus(), process.pid)
        return sample or None

    # ---- starting and stopping ----

    def start(self, wish: Wish) -> str:
        """Makes the sprint's folder and starts its process, which finds out whether it can run: its page says so."""
        with self._starting:
            with self._lock:
                self._reap()
                if sum(one.process.returncode is None for one in self._started.values()) >= MOST_STARTED:
                    raise Refused(f"{MOST_STARTED} sprints that were started here are running: wait for one to end")
            try:
                load_policy(wish.policy)
                team = AIResearchTeam(
                    agents=self._agents, options=_options(wish), results_dir=self._results, seed=_seed(wish.seed)
                )
                goal = wish.goal.strip()
                sprint = team.prepare_sprint(goal, self._recommending(wish.follows, goal))
            except (UsageProblem, PolicyError, StoreError) as error:
                raise Refused(str(error)) from None
            process, log = start(sprint, self._results)
            with self._lock:
                self._started[sprint] = _Started(process, log)
                self._looked = float("-inf")
            return sprint

    def _recommending(self, sprint: str, goal: str) -> str | None:
        """The sprint, where it does recommend that goal."""
        if not sprint:
            return None
        with contextlib.suppress(UsageProblem, StoreError):
            run, advised = advised_goal(Store(self._results), sprint)
            return run if advised == goal else None
        return None

    def stop(self, sprint: str) -> None:
        """Interrupts the process that is at a sprint. Raises Refused."""
        with self._lock:
            self._looked = float("-inf")
        process = self.running().get(sprint)
        if process is None:
            raise Refused("no process is at this sprint")
        if not process.stoppable:
            raise Refused(
                "this sprint's process is not certainly one that may be stopped from here: stop it where it was started"
            )
        ticks = start_ticks(process.pid)
        try:
            handle = os.pidfd_open(process.pid)
        except OSError:
            raise Refused("the sprint has ended") from None
        try:
            # With the handle open the pid cannot become another's; what was seen of it before is looked at again.
            if ticks is None or not alive(process.pid, ticks) or not _is_a_sprints(process.pid):
                raise Refused("the sprint has ended")
            signal.pidfd_send_signal(handle, _interrupt(process.pid))
        except ProcessLookupError:
            raise Refused("the sprint has ended") from None
        except PermissionError:
            raise Refused("the sprint's process is another user's") from None
        finally:
            os.close(handle)


# ---- what was asked for ----


def _options(wish: Wish) -> LabOptions:
    limits: dict[str, object] = {name: _typed(value) for name, value in wish.limits.items()}
    try:
        asked = PartialLimits.model_validate(limits)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        raise Refused(f"{str(first['loc'][0]).replace('_', ' ')}: {reason}") from None
    return LabOptions(policy=wish.policy, limits=asked)


def _typed(value: str) -> object:
    """A count or a number of cores as a number; what has a unit stays as it is written."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
    return value


def _seed(text: str) -> int:
    text = text.strip() or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) < _SEED_END):
        raise Refused("seed: a whole number from 0 to 4294967295")
    return int(text)


# ---- processes ----


def on_gpus(seen: Survey, pid: int) -> dict[str, float]:
    """What is used of the devices that are lent to a process: memory in all of them, and how busy they are on average."""
    lent = [one.reading for one in seen.devices if any(lease.pid == pid for lease in one.leases)]
    memory = [reading.memory for reading in lent if reading.memory is not None]
    busy = [reading.utilisation for reading in lent if reading.utilisation is not None]
    found = {"gpu_memory_bytes": float(sum(memory))} if memory else {}
    return found | ({"gpu_busy": sum(busy) / len(busy)} if busy else {})


def _journals_held(root: Path) -> Iterator[tuple[str, int]]:
    """Sprints and sweeps of the folder whose journal or order a process has locked, with its pid: from /proc/locks (proc_locks(5)).

    The locks' owners are asked which files they have open, since a file system's inode numbers need not be those that
    the kernel lists.
    """
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return
    words = [line.split() for line in lines]
    pids = {int(word[4]) for word in words if len(word) > 5 and word[1] == "FLOCK" and word[4].isdigit()}
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    path = entry.readlink()
                    if path.name in (EVENTS, SPEC) and path.parent.parent == root:
                        yield path.parent.name, pid


def _is_a_sprints(pid: int) -> bool:
    """Whether a process is `labsandbox run`, `resume` or `sweep` and nothing else: somebody's own program may too."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")[:-1]
    except OSError:
        return False
    if words[1:3] == ["-m", "orchestrator"]:
        return words[3:4] in (["run"], ["resume"], ["sweep"])
    return len(words) > 2 and Path(words[1]).name == "labsandbox" and words[2] in ("run", "resume", "sweep")


def _interrupt(pid: int) -> signal.Signals:
    """SIGINT; SIGTERM, which is taken alike, where a shell started the process in the background and had it ignore SIGINT."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigIgn:") and int(line.split()[1], 16) & 1 << (signal.SIGINT - 1):
                return signal.SIGTERM
    return signal.SIGINT


def _groups() -> dict[int, Cgroup]:
    """The control groups of the containers that run, by their owners' pids."""
    found = {}
    with contextlib.suppress(ExecutorError, OSError):
        for one in running_containers():
            if one.mine and one.found.running and (group := one.found.container.group()) is not None:
                found[one.found.owner.pid] = group
    return found
