"""Time, cores and seed, as the container was given them."""

import os
import signal
import threading
import time

from lab.kept import keep

_fitted = []  # the names of what was fitted, in the order of the program
_OWN_DEADLINE = time.monotonic() + 120.0  # outside the sandbox


def time_left():
    """Seconds until the container's wall-clock limit ends the experiment."""
    return float(os.environ.get("LAB_DEADLINE") or _OWN_DEADLINE) - time.monotonic()


def study_time_left():
    """Seconds in all for a study: this container's, and those of further ones that may go on with it."""
    return time_left() + float(os.environ.get("LAB_MORE") or 0)


class OutOfTime(BaseException):
    """No time is left for what is being done. No `except Exception` of an experiment's takes it for its own."""


class stopping_at:
    """Within this context OutOfTime is raised when no more than so many seconds are left: in the main thread, and between
    two steps of the interpreter's."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.before = None

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGALRM, self.stop)
            signal.setitimer(signal.ITIMER_REAL, max(0.001, time_left() - self.seconds))

    def __exit__(self, *exception):
        if self.before is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self.before)

    def stop(self, *_):
        raise OutOfTime


def cpus():
    """Cores that the container may use, at least 1."""
    return max(1, int(float(os.environ.get("LAB_CPUS", "1"))))


def seed():
    """The platform's base seed: start the seeds of a study here."""
    return int(os.environ.get("LAB_SEED", "0"))


def fit_steps(seconds_per_step, trainings, share=0.7, at_least=20, at_most=2000):
    """Steps for each of `trainings` equally long trainings that together take `share` of the time left.

    `seconds_per_step` is measured on the slowest arm, so that every arm gets the same number. A study that goes on in a
    further container keeps the first one's.
    """
    steps = int(share * time_left() / max(1, trainings) / max(1e-6, seconds_per_step))
    _fitted.append("steps" if not _fitted else "steps %d" % (len(_fitted) + 1))
    return keep(_fitted[-1], max(at_least, min(at_most, steps)))
