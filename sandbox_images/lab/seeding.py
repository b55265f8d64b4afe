"""Seeds: every training begins from the platform's, and what it left of them is put on record."""

import hashlib
import pickle
import random
import sys


def seed_everything(seed):
    """Seeds random, and numpy and torch where they are in use."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % (1 << 32))
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def reseeded(seed):
    """The seed that torch has now, where the training replaced the one it was given; else None."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    now = torch.initial_seed() & ((1 << 63) - 1)
    return None if now == seed else now


def generators():
    """A digest of the state of random's generator, and of numpy's where it is in use.

    These tell no seed as torch does, but after trainings under two seeds they are the same only where the training
    seeded them itself.
    """
    states = {"random": random.getstate()}
    if "numpy" in sys.modules:
        states["numpy"] = sys.modules["numpy"].random.get_state()
    return {name: hashlib.sha256(pickle.dumps(state)).hexdigest()[:16] for name, state in states.items()}
