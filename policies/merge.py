"""The stricter-only merge: box ceiling ∧ policy ∧ request. Whatever comes in, nothing gets looser."""

import os
from pathlib import Path

from policies.model import Ceiling, Limits, PartialLimits, load_ceiling

BOX_CEILING = Path("/etc/labsandbox/ceiling.yaml")


def box_ceilings() -> list[Ceiling]:
    """The ceilings of this box: /etc/labsandbox/ceiling.yaml and the file named by LABSANDBOX_CEILING.

    Both hold where both are there, so the environment can only tighten. Raises PolicyError.
    """
    named = os.environ.get("LABSANDBOX_CEILING")
    paths = ([BOX_CEILING] if BOX_CEILING.exists() else []) + ([Path(named)] if named else [])
    return [load_ceiling(path) for path in paths]


def stricter(limits: Limits, bound: PartialLimits) -> Limits:
    """`limits`, each lowered to `bound` where `bound` names a lower one."""
    return limits.model_copy(update={name: min(getattr(limits, name), value) for name, value in bound.given().items()})
