"""Quantities with their units: "4GiB" and "120s" in a policy, bytes and seconds in the program."""

import re
from typing import Annotated

from pydantic import BeforeValidator, ByteSize, PlainSerializer, TypeAdapter

_BYTE_SIZE = TypeAdapter(ByteSize)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_bytes(value: object) -> int:
    """Bytes from "512MiB" or "1.5GB"; a bare number has no unit and is refused (ValueError)."""
    if isinstance(value, bool) or not isinstance(value, str) or value.strip().replace(".", "", 1).isdigit():
        raise ValueError(f'a size needs a unit, such as "512MiB", not {value!r}')
    try:
        size = int(_BYTE_SIZE.validate_python(value.strip()))
    except ValueError:
        raise ValueError(f'not a size: {value!r} (write it as "512MiB" or "4GiB")') from None
    if size <= 0:
        raise ValueError(f"a size must be positive, not {value!r}")
    return size


def parse_seconds(value: object) -> float:
    """Seconds from "120s", "1.5m", "500ms" or "2h"; a bare number is refused (ValueError)."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h)\s*", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'a duration needs a unit, such as "120s" or "5m", not {value!r}')
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds <= 0:
        raise ValueError(f"a duration must be positive, not {value!r}")
    return seconds


def format_bytes(size: int) -> str:
    """The shortest exact text that `parse_bytes` reads back: 4294967296 is "4GiB"."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"


def format_seconds(seconds: float) -> str:
    """Text that `parse_seconds` reads back: 120.0 is "120s"."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


_SIZES = frozenset({"memory", "workspace", "tmp", "shm", "output", "metrics", "artifacts", "gpu_memory"})
_LARGER = ("KiB", "MiB", "GiB", "TiB")


def format_limit(name: str, value: float | None) -> str:
    """A limit of that name (`Limits` of model.py) as a policy's file has it: "4GiB", "120s", "256"; – for none."""
    if value is None:
        return "–"
    if name in _SIZES:
        return format_bytes(int(value))
    return format_seconds(value) if name == "wall" else f"{value:.10g}"


def format_size(size: float) -> str:
    """Bytes that were measured, in round figures and the unit that fits: "12.3 MiB"."""
    unit = "B"
    for larger in _LARGER:
        if abs(size) < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.4g} {unit}"


# Read from text with a unit, held as a number, written as text with a unit.
Bytes = Annotated[int, BeforeValidator(parse_bytes), PlainSerializer(format_bytes, when_used="json")]
Seconds = Annotated[float, BeforeValidator(parse_seconds), PlainSerializer(format_seconds, when_used="json")]
