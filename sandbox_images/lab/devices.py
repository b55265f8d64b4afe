"""The GPUs that this container was given, as the host tells it: LAB_GPUS and LAB_GPU_MEMORY."""

import os

CONTEXT = 768 << 20  # bytes that the driver and CUDA's libraries take of a device, which torch does not count
_hinted = set()


def gpus():
    """How many GPUs this container was given; no others can be seen."""
    return int(os.environ.get("LAB_GPUS") or 0)


def device():
    """The torch.device of this process: its own GPU where the container was given some (in `lab.launch`, one for each
    process), otherwise the CPU.

    Raises RuntimeError where GPUs were given and torch cannot use them: a run on the CPU would be another experiment.
    """
    import torch

    if not gpus():
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(
            "this container was given %d GPU(s), and torch %s cannot use them" % (gpus(), torch.__version__)
        )
    mine = torch.device("cuda", int(os.environ.get("LOCAL_RANK") or 0))
    allowed = int(os.environ.get("LAB_GPU_MEMORY") or 0)
    if allowed and mine.index not in _hinted:
        # A hint, so that torch says "out of memory" before the host's watch ends the experiment.
        share = max(allowed - CONTEXT, allowed / 2) / torch.cuda.get_device_properties(mine).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), mine)
        _hinted.add(mine.index)
    return mine
