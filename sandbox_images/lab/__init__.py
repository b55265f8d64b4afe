"""lab: what an experiment inside the sandbox needs to be a good one.

    lab.log(step=10, loss=0.5)               one metric record
    lab.params(lr=("log", 1e-5, 1e-1), ...)  hyperparameters that `labsandbox sweep` searches; the middle elsewhere
    lab.compare(train, arms, seeds, ...)     paired runs of every arm under every seed
    lab.text(), lab.digits()                 real data that is there without a network
    lab.time_left(), lab.fit_steps(...)      sizes that keep to the time limit
    lab.keep(name, value)                    a size that stays the same when a study goes on in a further container
    lab.cpus(), lab.seed()                   what this container was given
    lab.device(), lab.gpus()                 this process's device; how many GPUs there are
    lab.launch(fn, *args)                    fn in one process for each GPU, joined by torch.distributed

Only the standard library is imported; numpy and torch are seeded where the experiment uses them.
"""

from lab.channel import log
from lab.clock import cpus, fit_steps, seed, time_left
from lab.compare import compare
from lab.data import digits, text
from lab.devices import device, gpus
from lab.kept import keep
from lab.launch import launch
from lab.params import params

__all__ = [
    "compare",
    "cpus",
    "device",
    "digits",
    "fit_steps",
    "gpus",
    "keep",
    "launch",
    "log",
    "params",
    "seed",
    "text",
    "time_left",
]
