"""Time, cores and seed, as the container was given them."""

import os
import time

_DEADLINE = float(os.environ.get("LAB_DEADLINE") or time.monotonic() + 120.0)


def time_left():
    """Seconds until the container's wall-clock limit ends the experiment."""
    return _DEADLINE - time.monotonic()


def cpus():
    """Cores that the container may use, at least 1."""
    return max(1, int(float(os.environ.get("LAB_CPUS", "1"))))


def seed():
    """The platform's base seed: start the seeds of a study here."""
    return int(os.environ.get("LAB_SEED", "0"))


def fit_steps(seconds_per_step, trainings, share=0.7, at_least=20, at_most=2000):
    """Steps for each of `trainings` equally long trainings that together take `share` of the time left.

    `seconds_per_step` is measured on the slowest arm, so that every arm gets the same number.
    """
    steps = int(share * time_left() / max(1, trainings) / max(1e-6, seconds_per_step))
    return max(at_least, min(at_most, steps))
