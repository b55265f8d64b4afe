"""Metrics out of the files that an experiment left: JSON, lines of JSON, CSV. Pure functions over bytes.

A table is a list of objects, an object of lists, lines of objects, or CSV with a header. Which columns are metrics is
said by `metric_names.py`: beside a column that counts steps all that are no times, sizes, settings or counts; without
one only those whose names say metric. So neither a data set nor a configuration is taken for a learning curve.
"""

import csv
import io
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence

from executor.experiment import MAX_VALUES
from results.metric_names import metric_columns, step_column, titles
from results.printed import MAX_COLUMNS, Point, number_of, point_of

_DEPTH = 4
_MAX_LINE = 65536
_MAX_PARTS = 500
_MAX_ROWS = 300_000


def read_json(data: bytes) -> Iterator[Point]:
    """The metrics in a JSON document; in lines of JSON, if it is no document."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        yield from read_json_lines(data)
        return
    for part, path in itertools.islice(_parts(document, "", _DEPTH), _MAX_PARTS):
        yield from _of_part(part, path)


def read_json_lines(data: bytes) -> Iterator[Point]:
    """The metrics in lines that are objects; what is none is passed over."""
    for line in io.BytesIO(data):
        try:
            row = json.loads(line) if len(line) <= _MAX_LINE else None
        except (ValueError, RecursionError):
            continue
        point = point_of(row) if isinstance(row, dict) else None
        if point is not None:
            yield point


def _parts(document: object, path: str, depth: int) -> Iterator[tuple[object, str]]:
    """The document and the objects and lists in its objects, with their names joined by "/"."""
    if isinstance(document, dict):
        yield document, path
        for name, inner in document.items() if depth else ():
            if isinstance(inner, dict) or (isinstance(inner, list) and inner and isinstance(inner[0], dict)):
                yield from _parts(inner, f"{path}/{name}" if path else name, depth - 1)
    elif isinstance(document, list):
        yield document, path


def _of_part(part: object, path: str) -> Iterator[Point]:
    if isinstance(part, dict):
        lists = {name: inner for name, inner in part.items() if isinstance(inner, list)}
        yield from _of_columns(dict(itertools.islice(lists.items(), MAX_COLUMNS)), path)
        point = point_of({name: value for name, value in part.items() if not isinstance(value, dict)}, path)
        if point is not None:
            yield point
    elif isinstance(part, list):
        for row in itertools.islice(part, _MAX_ROWS):
            point = point_of(row, path) if isinstance(row, dict) else None
            if point is not None:
                yield point


def _of_columns(lists: Mapping[str, Sequence[object]], path: str) -> Iterator[Point]:
    """An object of lists: the values at one place of all lists are a row."""
    columns = {name: values for name, values in lists.items() if values and number_of(values[0]) is not None}
    step = step_column(list(columns))
    names = metric_columns(list(columns), step, path)[:MAX_VALUES]
    named = titles(path, names)
    for index in range(max((len(columns[name]) for name in named), default=0)):
        row = {title: number_of(columns[name][index]) for name, title in named.items() if index < len(columns[name])}
        values = {name: value for name, value in row.items() if value is not None}
        place = number_of(columns[step][index]) if step is not None and index < len(columns[step]) else None
        if values:
            yield Point(values, place if place is not None and math.isfinite(place) else None)


def read_csv(data: bytes) -> Iterator[Point]:
    """The metrics in CSV with a header, separated by commas, semicolons or tabs."""
    text = io.StringIO(data.decode("utf-8-sig", "replace"), newline="")
    header = text.readline()
    mark = max(",;\t", key=header.count)
    rows = csv.reader(itertools.chain([header], text), delimiter=mark)
    try:
        names = [name.strip() for name in next(rows, [])[:MAX_COLUMNS]]
        step = step_column(names)
        chosen = metric_columns(names, step)[:MAX_VALUES]
        places = {name: names.index(name) for name in chosen}
        steps = names.index(step) if step is not None else None
        if places:
            yield from (point for row in rows if (point := _of_row(row, steps, places)) is not None)
    except csv.Error:
        return


def _of_row(row: Sequence[str], step: int | None, places: Mapping[str, int]) -> Point | None:
    values = {name: value for name, place in places.items() if (value := _cell(row, place)) is not None}
    if not values:
        return None
    at = _cell(row, step) if step is not None else None
    return Point(values, at if at is not None and math.isfinite(at) else None)


def _cell(row: Sequence[str], place: int) -> float | None:
    text = row[place] if place < len(row) else ""
    try:
        return float(text) if len(text) <= 64 and "_" not in text else None
    except ValueError:
        return None
