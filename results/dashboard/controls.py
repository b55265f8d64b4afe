"""What the dashboard may do beyond reading: handed in by the floor above, which alone can start and stop sprints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Refused(Exception):
    """What was asked cannot be done; the text is for the person who asked."""


@dataclass(frozen=True)
class Wish:
    """A sprint that somebody asks for: as typed, so whoever carries it out checks it."""

    goal: str
    policy: str = "default"
    seed: str = "0"
    limits: Mapping[str, str] = field(default_factory=dict)
    """Limit's name → text; only to tighten the policy's."""
    follows: str = ""
    """The sprint that recommended the goal; it counts as taken up if this is still the goal that it recommends."""


@dataclass(frozen=True)
class Process:
    """Who is at a sprint now."""

    pid: int
    user: str
    since: float
    """When it started, in seconds since the epoch."""
    stoppable: bool
    """Whether `stop` may be asked for: it is this user's, and certainly a sprint's process and nothing else."""


class Controls(Protocol):
    """May be called from several threads."""

    def running(self) -> Mapping[str, Process]:
        """The sprints and sweeps of the results folder that a process is at, by id."""

    def start(self, wish: Wish) -> str:
        """Starts a sprint in a process of its own and returns its id. Raises Refused."""

    def stop(self, sprint: str) -> None:
        """Interrupts a sprint's process, as Ctrl-C would. Raises Refused where that is not certainly the right one."""

    def sample(self, sprint: str) -> Mapping[str, float] | None:
        """What its container uses now: memory_bytes, pids, cpu_s (so far); of GPUs that are lent to it, gpu_memory_bytes and
        gpu_busy (%)."""

    def last_words(self, sprint: str) -> str:
        """What a sprint's process that was started from here and has failed said last; "" where there is none."""
