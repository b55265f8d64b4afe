"""Metrics out of what an experiment printed, for code that does not use `lab`. Pure; time is linear in the bytes.

What is read, a line at a time (a progress bar that rewrites its line with a carriage return writes one line each time):

    Epoch [1/5], Step [10/63], Loss: 0.6723             name: number, name=number, 'name': number
    step 250: train loss 2.41, val loss 2.52            name number, where the name says that it is a metric
    {"step": 3, "loss": 0.2}                            an object of JSON, or a dictionary of Python
    Epoch 1:  45%|###  | 45/100 [00:12<00:15, 3.60it/s, loss=0.532]
    63/63 [====] - 1s 5ms/step - loss: 0.5 - accuracy: 0.8

The rules, which rather leave out than invent:
- A line counts if it names an epoch or a step, holds a progress bar, or has a name that says metric
  (`metric_names.py`). In the first case every `name: number` and `name=number` of it counts except times, sizes,
  settings and counts; in the last only names that say metric.
- A number with a unit after it, a version (1.2.3), a time (12:30), a date and a fraction (3/7) are none. A percentage
  is one only if the name says metric; the name then ends in " %".
- A name is as printed, with up to three words before it ("val loss"), and with "train", "val" or "test" where that
  heads the line ("val: loss=0.5" gives "val loss").
- The step: n of "n/total" beside an epoch counts within it, so it is (epoch - 1)·total + n, or epoch·total + n once an
  epoch 0 was named. An epoch without a step stands at its end. Other steps are as printed. A line that says neither
  stands where the last one stood.
- A progress bar draws its values again and again; they count once, where they are new.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from executor.experiment import MAX_VALUES
from results.metric_names import is_likely, is_never, is_sure, metric_columns, step_column, titles, word_set

MAX_COLUMNS = 1000
"""That are looked at, of one row."""
_MAX_LINES = 500_000
_MAX_TEXT = 4096
_MAX_JSON = 65536
_LINE_ENDS = re.compile(rb"[\r\n]+")


@dataclass(frozen=True)
class Point:
    """Values at one place."""

    values: dict[str, float]
    step: float | None = None
    seconds: float | None = None
    """Since the first point."""


def read_output(chunks: Iterable[bytes]) -> Iterator[Point]:
    """The metrics in one stream of output, given in parts of any size."""
    reader = _Reader()
    for line in itertools.islice(_lines(chunks), _MAX_LINES):
        point = reader.read(line)
        if point is not None:
            yield point


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines and rewritten lines, without those that are too long to be one for people."""
    rest, skipping = b"", False
    for chunk in chunks:
        first, *others = _LINE_ENDS.split(chunk)
        if others:
            if not skipping:
                yield rest + first
            *whole, rest = others
            yield from whole
            skipping = False
        elif not skipping:
            rest += first
        if len(rest) > _MAX_JSON:
            rest, skipping = b"", True
    if not skipping:
        yield rest


# Every repetition is bounded and possessive, so that no line takes more than linear time.
_COLOUR = re.compile(r"\x1b\[[0-9;?]{0,32}+[A-Za-z]")
_NUMBER = r"[+-]?(?:\d{1,24}+(?:\.\d{0,24}+)?+|\.\d{1,24}+)(?:e[+-]?\d{1,4}+)?+|[+-]?(?:nan|inf(?:inity)?+)"
_PAIR = re.compile(
    r"(?<![\w.@/-])(?P<name>[a-z_][\w.@/+-]{0,63}+)['\"\])}]{0,2}+(?P<sign>\s{0,8}+[:=]\s{0,8}+|\s(?:is|was|of)\s|\s{1,8}+)"
    rf"(?:(?:tensor|np\.float\d{{1,3}}+)\()?+(?P<number>{_NUMBER})"
    r"(?![\w/]|[.:-]\d|,\d{3}(?!\d))(?P<percent>\s?%(?!\s?\|))?+(?!\s?%)"
    r"(?!\s{0,2}(?:[nµum]?s|secs?|seconds?|mins?|minutes?|h|hrs?|hours?|d|days?|[kmgt]?i?b|bytes|[kmg]?hz|w|c|x|px|k|m|"
    r"(?:it|its|img|images|samples|tokens|steps)/s|params|parameters)\b(?!\s*[:=]))",
    re.IGNORECASE | re.ASCII,
)
_EPOCH = re.compile(
    r"(?<![a-z0-9_])epoch['\"]?(?:\(\w{1,10}\))?\s{0,3}[:=#\[(]{0,3}\s{0,3}(\d{1,9}+(?:\.\d{1,9})?+)(?![\w%])"
    r"(?:\s?(?:/|of)\s?\d{1,9}+)?+",
    re.IGNORECASE | re.ASCII,
)
_STEP = re.compile(
    r"(?<![a-z0-9_])(?:(global[_ ]?step|train[_ ]?step|step|iter(?:ation)?|update|episode|round)|batch)"
    r"['\"]?\s{0,3}[:=#\[(]{0,3}\s{0,3}(\d{1,12}+)(?![\w%]|\.\d)(?:\s?(?:/|of)\s?(\d{1,12}+))?+",
    re.IGNORECASE | re.ASCII,
)
_OF_TOTAL = re.compile(r"(?:[\[|━╸]\s{0,8}|^\s{0,8})(\d{1,12}+)\s?/\s?(\d{1,12}+)(?=[\s\]])", re.ASCII)
_BAR = re.compile(r"\d/\d{1,12}+ \[\d{1,4}+:\d\d")
_SCOPES = "train training val valid validation test testing eval evaluation dev"
_SCOPE = re.compile(
    rf"(?<![\w.@/-])({_SCOPES.replace(' ', '|')})(?: set)?"
    r"(?:\s{0,2}[\]):|>]|\s{1,2}-\s)",
    re.IGNORECASE | re.ASCII,
)
_SCOPED = re.compile(r"train|val|test|eval|dev", re.IGNORECASE)
_BEFORE = re.compile(r"((?:[a-z][a-z-]{0,31}+ ){1,3})$", re.IGNORECASE | re.ASCII)
_NO_PART_OF_A_NAME = word_set(
    """
    epoch step iter iteration update episode round batch global a an and or the of is was at for after with to in on by
    has had got gives finished done new current info debug warning error set results result metrics model now
    """
)
_ALONE = word_set(_SCOPES)
"""No names by themselves: "Train: 0 [50/1251]" says the epoch."""
_FILES = word_set("py c cc cpp cu h json txt so sh yaml")


@dataclass
class _Reader:
    """One stream's state: where its last line stood."""

    epoch: float | None = None
    in_new_epoch: bool = False
    """An epoch was named since the last values."""
    first_epoch: int = 1
    total: int | None = None
    """Steps of an epoch; the most that were named."""
    place: float | None = None
    drawn: str | None = None
    """What a progress bar showed last: it draws the same values again while it moves on, until there are new ones."""

    def read(self, raw: bytes) -> Point | None:
        """The metrics of one line."""
        if raw[:1] == b"{" and raw.rstrip()[-1:] == b"}" and (row := _json_object(raw)) is not None:
            return point_of(row)
        if len(raw) > _MAX_TEXT:
            return None
        text = raw.decode("utf-8", "replace")
        text = _COLOUR.sub("", text) if "\x1b" in text else text
        epoch = _EPOCH.search(text)
        if epoch:
            self._see_epoch(float(epoch[1]))
        pairs = list(itertools.islice(_PAIR.finditer(text), MAX_VALUES))
        if not pairs:
            return None
        step, total = _step(text, epoch.end() if epoch else 0)
        values = _values(text, pairs, beside_a_step=epoch is not None or step is not None)
        if not values:
            return None
        self._move(step, total)
        if _BAR.search(text):
            shown = repr((self.epoch, total, values))
            if shown == self.drawn:
                return None
            self.drawn = shown
        return Point(values, self.place)

    def _see_epoch(self, epoch: float) -> None:
        self.in_new_epoch = self.in_new_epoch or epoch != self.epoch
        self.epoch = epoch
        if epoch == 0:
            self.first_epoch = 0

    def _move(self, step: int | None, total: int | None) -> None:
        whole = self.epoch is not None and self.epoch.is_integer()
        if step is not None:
            self.place = float(step)
            if self.epoch is not None and whole and total:
                self.total = max(total, self.total or 0)
                self.place += (self.epoch - self.first_epoch) * total
        elif self.epoch is not None and whole and self.total:
            self.place = (self.epoch - self.first_epoch + 1) * self.total
        elif self.in_new_epoch:
            self.place = self.epoch
        self.in_new_epoch = False


def _step(text: str, after_epoch: int) -> tuple[int | None, int | None]:
    """The step that a line names, and of how many."""
    for found in _STEP.finditer(text):
        if found[1] or found[3] or after_epoch:  # a batch alone may be a size
            whole = found[1] is not None and found[1].lower().startswith("global")
            return int(found[2]), int(found[3]) if found[3] and not whole else None
    bar = _OF_TOTAL.search(text, after_epoch)
    return (int(bar[1]), int(bar[2])) if bar else (None, None)


def _values(text: str, pairs: list[re.Match[str]], beside_a_step: bool) -> dict[str, float]:
    scopes = [(found.start(), found[1]) for found in _SCOPE.finditer(text)]
    values: dict[str, float] = {}
    end = 0
    for pair in pairs:
        name = _name(text, pair, end, scopes)
        end = pair.end()
        if _counts(name, pair, beside_a_step) and len(values) < MAX_VALUES:
            values.setdefault(f"{name} %" if pair["percent"] else name, float(pair["number"]))
    return values


def _counts(name: str, pair: re.Match[str], beside_a_step: bool) -> bool:
    bare = pair["name"].lower()
    if is_never(name) or is_never(bare) or bare in _ALONE or bare.rpartition(".")[2] in _FILES:
        return False
    sure, likely, percent = is_sure(name), is_likely(name), pair["percent"] is not None
    fraction = percent or not pair["number"].lstrip("+-").isdigit()
    if percent or pair["sign"].strip() not in {":", "="}:
        return (sure or likely) and (fraction or (sure and beside_a_step))
    return sure or beside_a_step or (likely and fraction)


def _name(text: str, pair: re.Match[str], end: int, scopes: list[tuple[int, str]]) -> str:
    """As printed, with the words before it, and the scope that heads it."""
    name = pair["name"].rstrip(".-/+")
    if pair["sign"] != "=" and text[pair.start() - 1 : pair.start()] == " ":
        before = _BEFORE.search(text, max(end, pair.start() - 100), pair.start())
        if before:
            words: list[str] = []
            for word in before[1].split():
                words = [] if word.lower() in _NO_PART_OF_A_NAME else [*words, word]
            name = " ".join([*words, name])
    scope = next((word for place, word in reversed(scopes) if place < pair.start()), None)
    return name if scope is None or _SCOPED.search(name) else f"{scope} {name}"


def _json_object(raw: bytes) -> dict[str, object] | None:
    """None for what Python prints, whose quotes and NaN are not JSON's."""
    try:
        data = json.loads(raw) if len(raw) <= _MAX_JSON else None
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def point_of(row: dict[str, object], path: str = "") -> Point | None:
    """The metrics of one row, those one level down as "outer/inner"; None when it has none. path: the row's own name."""
    flat = dict(itertools.islice(_flat(row), MAX_COLUMNS))
    step = step_column(list(flat))
    names = metric_columns(list(flat), step, path)[:MAX_VALUES]
    values = {title: flat[name] for name, title in titles(path, names).items()}
    place = flat[step] if step is not None and math.isfinite(flat[step]) else None
    return Point(values, place) if values else None


def _flat(row: dict[str, object]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, dict):
            for inner, one in value.items():
                if (number := number_of(one)) is not None:
                    yield f"{name}/{inner}", number
        elif (number := number_of(value)) is not None:
            yield name, number


def number_of(value: object) -> float | None:
    """A number of JSON, or the name of one that JSON cannot write."""
    if isinstance(value, str) and value.lower() in {"nan", "inf", "-inf", "infinity", "-infinity"}:
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
