"""`labsandbox serve`: containers that wait, for all of a user's commands."""

import time

from orchestrator.cli.terminal import note
from orchestrator.errors import UsageProblem
from orchestrator.serving import serving

_LOOK = 0.5


def serve() -> None:
    """Keep containers warm for this user's commands: a run takes one that waits, and starts at once."""
    with serving() as pool:
        if pool is None:
            raise UsageProblem("another process serves already: one process of a user is enough")
        note("serving; Ctrl-C ends it, and runs that took a container go on")
        waiting = 0
        while True:
            if (now := pool.waiting()) != waiting:
                waiting = now
                note(f"{waiting} container(s) wait")
            time.sleep(_LOOK)
