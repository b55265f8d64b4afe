"""Reads an experiment's source without running it: does it parse, and what does it import.

Parsing is done in a process of its own with little memory and time: Python's parser can be made to crash or to take
all memory by text that was written for it (see the warning at `ast.parse` in the Python documentation).
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_SECONDS = 10
_MEMORY = 1 << 30
MAX_SOURCE = 1 << 20
"""Bytes of source that are accepted."""

# At the head of what runs there, before it reads anything: `preexec_fn` would run Python between fork and exec, where a lock that
# another thread of ours held at that moment stays locked (see the warning in the documentation of subprocess).
_LIMITS = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, {_MEMORY}))
resource.setrlimit(resource.RLIMIT_CPU, ({_SECONDS}, {_SECONDS}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
"""

_PARSE = """
import ast, json, sys, warnings
warnings.simplefilter("ignore")
source = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
try:
    tree = ast.parse(source, "experiment.py")
except SyntaxError as e:
    print(json.dumps({"error": e.msg, "line": e.lineno}))
except (ValueError, RecursionError, MemoryError) as e:
    print(json.dumps({"error": str(e) or type(e).__name__, "line": None}))
else:
    names, needed, waiting = set(), set(), [(tree, True)]
    while waiting:
        node, certain = waiting.pop()
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found = [node.module.split(".")[0]]
        names.update(found)
        if certain:
            needed.update(found)
        certain = certain and not isinstance(node, (ast.Try, ast.TryStar, ast.If))
        waiting += [(child, certain) for child in ast.iter_child_nodes(node)]
    print(json.dumps({"imports": sorted(names), "needed": sorted(needed)}))
"""


@dataclass(frozen=True)
class SourceReport:
    """What reading the source showed."""

    error: str | None
    """Why it does not parse, in one line; None when it does."""
    line: int | None
    imports: tuple[str, ...]
    """Top-level modules that it imports anywhere, sorted; the standard library's among them."""
    needed: tuple[str, ...] = ()
    """Those that are imported for certain: not inside `try` or `if`."""


def check_source(code: str) -> SourceReport:
    """Parses `code` in a separate process."""
    return begin_check(code)()


def begin_check(code: str) -> Callable[[], SourceReport]:
    """Begins `check_source`, and gives what waits for it: there are other things to load meanwhile."""
    size = len(code.encode("utf-8", "surrogatepass"))
    if size > MAX_SOURCE:
        return lambda: _refused(f"the source has {size} bytes, more than the {MAX_SOURCE} that are accepted")
    reading = _begin(_PARSE, code)

    def report() -> SourceReport:
        said = reading()
        if said is None:
            return _refused("the source cannot be parsed: the parser gave up on it")
        return SourceReport(
            said.get("error"), said.get("line"), tuple(said.get("imports", ())), tuple(said.get("needed", ()))
        )

    return report


def read_apart(script: str, code: str) -> dict[str, Any] | None:
    """The JSON object that `script` prints of the source on its standard input; None when it crashes or takes too long.

    It runs in a process of its own with little memory and time, without this one's environment.
    """
    return _begin(script, code)()


def _begin(script: str, code: str) -> Callable[[], dict[str, Any] | None]:
    with tempfile.TemporaryFile() as source:  # a file, not a pipe, which somebody would have to stay and fill
        source.write(code.encode("utf-8", "surrogatepass"))
        source.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LIMITS + script],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
        )

    def wait() -> dict[str, Any] | None:
        with process:
            try:
                out, _ = process.communicate(timeout=2 * _SECONDS)
                said = json.loads(out) if process.returncode == 0 else None
            except (subprocess.TimeoutExpired, ValueError):
                return None
            finally:
                process.kill()
        return said if isinstance(said, dict) else None

    return wait


def needed_imports(report: SourceReport) -> tuple[str, ...]:
    """The modules that an experiment with this source cannot do without; no more than one may name."""
    return tuple(name for name in report.needed if len(name) <= 200)[:500]


def _refused(reason: str) -> SourceReport:
    return SourceReport(reason, None, ())
