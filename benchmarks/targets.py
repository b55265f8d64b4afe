"""What was wanted, and whether it was found."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.figures import Figures, median_of

Find = Callable[[Figures], float]
"""What was found. Raises KeyError where it was not measured."""


@dataclass(frozen=True)
class Target:
    """A bound on something that was measured or comes of it."""

    words: str
    bound: float
    unit: str
    """Of the bound and of what is found."""
    find: Find
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether that much will do."""
        return value >= self.bound if self.at_least else value <= self.bound


def compare(found: Figures) -> Iterator[str]:
    """The table: a line for every target, with what was wanted, what was found, and whether that is enough."""
    yield f"{'target':64}{'wanted':>16}{'found':>12}"
    for target in TARGETS:
        bound = f"{'>=' if target.at_least else '<='} {target.bound:g} {target.unit}"
        try:
            value = target.find(found)
        except KeyError:
            yield f"{target.words:64}{bound:>16}{'-':>12}  not measured"
        else:
            yield f"{target.words:64}{bound:>16}{value:>12.4g}  {'met' if target.met(value) else 'not met'}"


def _of(name: str, scale: float = 1.0) -> Find:
    return lambda found: scale * median_of(found, name)


def _ms(name: str) -> Find:
    return _of(name, 1000.0)


def _ms_more(long: str, short: str) -> Find:
    return lambda found: 1000 * (median_of(found, long) - median_of(found, short))


def _percent_more(ratio: str) -> Find:
    return lambda found: 100 * (median_of(found, ratio) - 1)


def _times_faster(slow: str, fast: str) -> Find:
    return lambda found: median_of(found, slow) / median_of(found, fast)


def _both(words: str, bound: float, unit: str, find: Callable[[str], Find], at_least: bool = False) -> list[Target]:
    """The same wanted of both backends."""
    return [Target(f"{words}, {backend}", bound, unit, find(backend), at_least) for backend in ("oci", "docker")]


_PLAIN = "docker-run/cold/torch/first_line"

TARGETS = [
    *_both("warm, import torch: first line", 15, "ms", lambda name: _ms(f"labsandbox-{name}/warm/torch/first_line")),
    *_both(
        "warm, import torch: first line beside docker run",
        50,
        "times",
        lambda name: _times_faster(_PLAIN, f"labsandbox-{name}/warm/torch/first_line"),
        at_least=True,
    ),
    *_both(
        "warm, import torch: gone after the end", 150, "ms", lambda name: _ms(f"labsandbox-{name}/warm/torch/after_end")
    ),
    Target("cold, print(1): first line, oci", 120, "ms", _ms("labsandbox-oci/cold/print/first_line")),
    Target("cold, print(1): gone, oci", 180, "ms", _ms("labsandbox-oci/cold/print/gone")),
    Target("cold, print(1): first line, docker", 300, "ms", _ms("labsandbox-docker/cold/print/first_line")),
    Target("cold, print(1): gone, docker", 450, "ms", _ms("labsandbox-docker/cold/print/gone")),
    Target("short runs, oci", 15, "/s", _of("labsandbox-oci/throughput"), at_least=True),
    Target("short runs, docker", 4, "/s", _of("labsandbox-docker/throughput"), at_least=True),
    *_both("training step: longer than bare", 1, "%", lambda name: _percent_more(f"step/{name}/ratio")),
    *_both("supervising a quiet run: of a core", 1, "%", lambda name: _of(f"supervisor/{name}", 100)),
    # "Seconds, not memory": a few of the one, and no more of the other than a run without output may take.
    *_both("1 GB of output: time", 10, "s", lambda name: _of(f"output/{name}/gigabyte")),
    *_both("1 GB of output: memory", 32, "MiB", lambda name: _of(f"output/{name}/memory")),
    Target("labsandbox --help", 150, "ms", _ms("start/help")),
    # How the command line starts has its bound in the line above; this is what `exec` adds to it.
    *_both(
        "exec: until the request, more than --help",
        150,
        "ms",
        lambda name: _ms_more(f"start/exec-{name}", "start/help"),
    ),
    Target("audit records, 100 a commit", 5000, "/s", _of("audit/batched"), at_least=True),
]
