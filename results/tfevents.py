"""Scalars out of a TensorBoard event file, without TensorFlow or TensorBoard. Pure.

The file is TFRecords (length, its CRC, data, its CRC; the CRCs are CRC-32C, rotated and shifted) of `Event` messages in
protobuf's wire format, of which a scalar needs five fields. Formats: tensorflow/core/lib/io/record_writer.h,
tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto and tensor.proto. What does not check ends
the reading: there is nothing to hold on to behind it.
"""

import struct
from collections.abc import Iterator

import google_crc32c

from executor.experiment import MAX_NAME, MAX_VALUES
from results.printed import Point

_MAX_RECORD = 1 << 20  # a scalar has a hundred bytes; pictures and graphs are passed over
_FLOAT, _DOUBLE = 1, 2  # DataType

Field = tuple[int, int | bytes]


def read_events(data: bytes) -> Iterator[Point]:
    """The scalars of each event, in order."""
    began: float | None = None
    for record in _records(data):
        try:
            wall, step, values = _event(record)
        except (ValueError, struct.error):
            return
        began = wall if began is None else began
        if values:
            yield Point(values, float(step), wall - began)


def _records(data: bytes) -> Iterator[bytes]:
    place = 0
    while place + 12 <= len(data):
        length, check = struct.unpack_from("<QI", data, place)
        start = place + 12
        place = start + length + 4
        if _masked(data[start - 12 : start - 4]) != check or place > len(data):
            return
        if length <= _MAX_RECORD:
            record = data[start : start + length]
            if _masked(record) != struct.unpack_from("<I", data, start + length)[0]:
                return
            yield record


def _masked(data: bytes) -> int:
    value = int(google_crc32c.value(data))
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _event(record: bytes) -> tuple[float, int, dict[str, float]]:
    wall, step = 0.0, 0
    values: dict[str, float] = {}
    for number, value in _fields(record):
        if number == 1 and isinstance(value, bytes):
            wall = float(struct.unpack("<d", value)[0])
        elif number == 2 and isinstance(value, int):
            step = value if value < 1 << 63 else value - (1 << 64)
        elif number == 5 and isinstance(value, bytes):
            for inner, summary in _fields(value):
                if inner == 1 and isinstance(summary, bytes) and len(values) < MAX_VALUES:
                    values |= _scalar(summary)
    return wall, step, values


def _scalar(summary: bytes) -> dict[str, float]:
    """One value of a summary, {} if it is no scalar."""
    tag, found = "", None
    for number, value in _fields(summary):
        if number == 1 and isinstance(value, bytes):
            tag = value.decode("utf-8", "replace")
        elif number == 2 and isinstance(value, bytes):
            found = float(struct.unpack("<f", value)[0])
        elif number == 8 and isinstance(value, bytes):
            found = _tensor(value)
    return {tag: found} if found is not None and 0 < len(tag) <= MAX_NAME and tag.isprintable() else {}


def _tensor(tensor: bytes) -> float | None:
    """The number of a tensor that holds one; None for other tensors."""
    kind, raw = 0, b""
    for number, value in _fields(tensor):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number in (4, 5, 6) and isinstance(value, bytes):  # tensor_content, float_val, double_val
            raw = value
    form = {_FLOAT: "<f", _DOUBLE: "<d"}.get(kind)
    return float(struct.unpack(form, raw)[0]) if form and len(raw) == struct.calcsize(form) else None


def _fields(message: bytes) -> Iterator[Field]:
    """Field numbers, with a number for a varint and bytes for all else. Raises ValueError for what is no message."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(message, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("not a message")
        if place + size > len(message):
            raise ValueError("a message that is cut off")
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("not a number")
