"""From a request to its first output line, and to everything destroyed: labsandbox, cold and warm, beside plain Docker.

All take turns, round after round, so that what slows the machine down slows all of them. Ratios are of medians of one run.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.figures import Figures, figure
from executor.backends.base import Backend
from executor.backends.docker import DockerBackend, engine_client
from executor.backends.oci import OciBackend
from executor.errors import ExecutorError
from executor.executor import Executor
from executor.experiment import AnyRecord, ArtifactWriter, Experiment
from executor.warm import Pool
from policies.audit import AuditLog
from policies.decision import Request
from policies.model import Policy, load_policy
from policies.state import cache_dir
from sandbox_images.images import image_reference

PROGRAMS = {"print": "print(1)", "torch": "import torch\nprint(1)"}
_READY = 60.0


@dataclass(frozen=True)
class Timed:
    """Seconds from the request."""

    first_line: float
    gone: float
    end: float | None = None
    """Until the experiment's process had ended, where that is known; a little less, for the decision is in no step's time."""

    def figures(self) -> dict[str, float]:
        """All that can be said, by name."""
        known = {} if self.end is None else {"end": self.end, "after_end": self.gone - self.end}
        return {"first_line": self.first_line, **known, "gone": self.gone}


Way = Callable[[str], Timed]


class FirstLine:
    """A sink that only looks at the clock."""

    at = 0.0

    def log(self, stream: str, data: bytes) -> None:
        self.at = self.at or time.perf_counter()

    def record(self, record: AnyRecord) -> None:
        pass

    def artifact(self, name: str) -> ArtifactWriter:
        raise FileExistsError(name)


def labsandbox(backend: Backend, policy: Policy, audit: AuditLog, pool: Pool | None) -> Way:
    """Runs by this project, in containers that wait where there is a pool."""
    executor = Executor(backend, audit, pool=pool)
    executor.preflight(policy, Request())

    def run(program: str) -> Timed:
        imports = ("torch",) if "torch" in program else ()
        experiment = Experiment(code=program, imports=imports)
        if pool is not None:
            executor.warm_up(experiment, policy, Request())
            _wait(pool)
        sink = FirstLine()
        began = time.perf_counter()
        execution = executor.run(experiment, policy, Request(), sink)
        gone = time.perf_counter() - began
        assert execution.success and sink.at, execution.message
        took = execution.timings
        return Timed(sink.at - began, gone, took.queue_s + took.prepare_s + took.start_s + took.run_s)

    return run


def _wait(pool: Pool) -> None:
    """Until all wait that shall: refilling is no part of a request."""
    deadline = time.monotonic() + _READY
    while not pool.full():
        if time.monotonic() > deadline:
            raise RuntimeError("no container came to wait")
        time.sleep(0.01)


def docker_run(image: str) -> Way:
    """`docker run --rm` of the same image, with the same limits, without a network."""
    command = [
        "docker",
        "run",
        "--rm",
        "--network",
        "none",
        "--memory",
        "4g",
        "--cpus",
        "2",
        "--pids-limit",
        "256",
        image,
    ]

    def run(program: str) -> Timed:
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, "python3", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        first = time.perf_counter() - began
        assert process.wait() == 0 and line == b"1\n"
        gone = time.perf_counter() - began
        return Timed(first, gone)

    return run


def backends(state: Path) -> list[Backend]:
    """Each with runc; docker's where an engine answers."""
    found: list[Backend] = [OciBackend(state, cache_dir())]
    try:
        engine_client().ping()
        found.append(DockerBackend(image_reference()))
    except (ExecutorError, OSError) as error:
        print(f"no engine: {error}", file=sys.stderr)
    for backend in found:
        backend.prepare(lambda text: None)
    return found


@contextmanager
def others(image: str) -> Iterator[dict[str, Way]]:
    """Those of `others.py` that work here, by the Python that OTHERS names."""
    if not (python := os.environ.get("OTHERS")):
        yield {}
        return
    api = engine_client().api
    made = api.create_container(image, "true")["Id"]
    # They start an image's own command, and ours has none.
    runnable = api.commit(made, changes=['CMD ["python3"]'])["Id"]
    api.remove_container(made)
    command = [python, str(Path(__file__).with_name("others.py")), runnable]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        yield dict(_working(process.stdin, process.stdout))
        process.stdin.close()
    api.remove_image(runnable, force=True)


def _working(asked: IO[str], answers: IO[str]) -> Iterator[tuple[str, Way]]:
    def way(name: str) -> Way:
        def run(program: str) -> Timed:
            print(json.dumps({"way": name, "program": program}), file=asked, flush=True)
            answer = json.loads(answers.readline())
            if isinstance(answer, str):
                raise RuntimeError(f"{name}: {answer}")
            first, gone = answer
            return Timed(first, gone)

        return run

    for name in json.loads(answers.readline()):
        try:
            way(name)(PROGRAMS["print"])
            yield f"{name}/cold", way(name)
        except RuntimeError as error:
            print(error, file=sys.stderr)


@contextmanager
def ways(state: Path) -> Iterator[dict[str, Way]]:
    """All that can be measured here, by name."""
    found: dict[str, Way] = {}
    policy = load_policy("default")
    here = backends(state)
    with contextlib.ExitStack() as stack:
        for backend in here:
            audit = AuditLog(state / f"{backend.name}.jsonl")
            for warmth, pool in (("cold", None), ("warm", Pool(audit))):
                if pool is not None:
                    stack.callback(pool.close)
                found[f"labsandbox-{backend.name}/{warmth}"] = labsandbox(backend, policy, audit, pool)
        if len(here) > 1 and shutil.which("docker"):
            found["docker-run/cold"] = docker_run(image_reference())
            found |= stack.enter_context(others(image_reference()))
        yield found


def measure(rounds: int) -> Figures:
    """Medians by "way/program/figure"."""
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, ways(Path(folder)) as found:
        for number in range(rounds + 1):
            for way, run in found.items():
                for program, code in PROGRAMS.items():
                    timed = run(code)
                    if number:  # the first fills caches
                        for name, value in timed.figures().items():
                            seconds[f"{way}/{program}/{name}"].append(value)
            print(f"round {number} of {rounds}", file=sys.stderr)
    return {name: figure("s", values) for name, values in seconds.items()}
