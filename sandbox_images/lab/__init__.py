"""lab: what an experiment inside the sandbox needs to be a good one.

    lab.log(step=10, loss=0.5)               one metric record
    lab.compare(train, arms, seeds, ...)     paired runs of every arm under every seed
    lab.text(), lab.digits()                 real data that is there without a network
    lab.time_left(), lab.fit_steps(...)      sizes that keep to the time limit
    lab.cpus(), lab.seed()                   what this container was given

Only the standard library is imported; numpy and torch are seeded where the experiment uses them.
"""

from lab.channel import log
from lab.clock import cpus, fit_steps, seed, time_left
from lab.compare import compare
from lab.data import digits, text

__all__ = ["compare", "cpus", "digits", "fit_steps", "log", "seed", "text", "time_left"]
