"""Names from experiments, made into names that other tools accept, so that two names stay two."""

import hashlib
import re
from typing import Literal

from policies.text import harmless, shortened

DestinationName = Literal["wandb", "mlflow", "tensorboard", "csv"]

_MARK = re.compile(r"-(?=0x)")
_ODD = re.compile(r"[^A-Za-z0-9_. /-]")


def metric_name(name: str, limit: int = 240) -> str:
    """Letters, digits, `_ . - /` and spaces stay; anything else becomes `-0x2a-`, its code point.

    Slashes stay where they part the name as folders are parted; a name such as "../a" or "a//b" loses its slashes and
    dots. What is longer than `limit` is cut and ends in a hash. Our own names hold a colon, which no result of this does.
    """
    safe = _ODD.sub(_code, _MARK.sub("-0x2d-", name))
    if not all(part.strip(". ") and part == part.strip() for part in safe.split("/")):
        safe = re.sub(r"[./ ]", _code, safe)
    if safe.startswith("_"):  # W&B keeps such names for itself
        safe = "-0x5f-" + safe[1:]
    return _short(safe, limit)


def file_name(name: str, limit: int = 100) -> str:
    """The same for one part of a path: without slashes and spaces, and never hidden."""
    safe = re.sub(r"[/ ]|^\.|^$", _code, _ODD.sub(_code, _MARK.sub("-0x2d-", name)))
    return _short(safe or "-0x-", limit)


def _code(found: re.Match[str]) -> str:
    return f"-0x{ord(found[0]):x}-" if found[0] else "-0x-"


def _short(safe: str, limit: int) -> str:
    if len(safe) <= limit:
        return safe
    return f"{safe[: limit - 18].rstrip('. /')}-h{hashlib.sha256(safe.encode()).hexdigest()[:16]}"


def plain(text: str, limit: int) -> str:
    """A value for people: harmless, and of at most `limit` characters."""
    return shortened(harmless(text[: limit + 1]), limit)
