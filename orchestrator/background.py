"""Work in a thread that nobody has to wait for."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def in_background(work: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> Future[_T]:
    """What `work` gives, from a daemon thread: unlike a pool's, nobody waits for it when the process is to end."""
    outcome: Future[_T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work(*arguments, **named))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="agent", daemon=True).start()
    return outcome
