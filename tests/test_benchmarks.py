"""`make bench` in small, where only ratios can be held to anything; and many runs at once."""

import threading

import pytest

from benchmarks.__main__ import measure
from benchmarks.figures import Figures, median_of
from benchmarks.targets import compare
from executor.executor import Executor
from executor.experiment import Experiment, Outcome
from executor.places import Places, Room
from executor.warm import Pool
from policies.audit_check import verify
from policies.decision import Request
from tests.conftest import Bench, Recorded


@pytest.fixture(scope="module")
def found(cpu_image: str) -> Figures:
    """All of `make bench`, three rounds of it."""
    return measure(3)


@pytest.mark.timeout(900)
def test_a_warm_container_is_many_times_faster_than_dockers_own_command_and_a_cold_one_not_slower(
    found: Figures,
) -> None:
    seconds = {name: figures["median_s"] for name, figures in found.items() if "median_s" in figures}
    plain = seconds["docker-run/cold/torch/first_line"]
    for backend in ("oci", "docker"):
        assert 10 * seconds[f"labsandbox-{backend}/warm/torch/first_line"] < plain  # 80 on a quiet machine
        warm, cold = (seconds[f"labsandbox-{backend}/{warmth}/print/gone"] for warmth in ("warm", "cold"))
        assert warm < cold
        assert seconds[f"labsandbox-{backend}/warm/torch/after_end"] < plain / 2
    assert seconds["labsandbox-oci/cold/print/gone"] < seconds["docker-run/cold/print/gone"]
    assert seconds["labsandbox-docker/cold/print/gone"] < 2 * seconds["docker-run/cold/print/gone"]


@pytest.mark.timeout(900)
def test_a_step_inside_takes_no_longer_supervising_costs_little_and_a_gigabyte_of_output_no_memory(
    found: Figures,
) -> None:
    for backend in ("oci", "docker"):
        assert median_of(found, f"step/{backend}/ratio") < 1.15  # 0.97 to 1.00 on a quiet machine
        assert median_of(found, f"supervisor/{backend}") < 0.01
        assert median_of(found, f"output/{backend}/memory") < 32


@pytest.mark.timeout(900)
def test_every_target_is_measured(found: Figures) -> None:
    assert [line for line in compare(found) if "not measured" in line] == []


def test_a_target_says_what_was_wanted_and_what_was_found() -> None:
    lines = list(
        compare(
            {"start/help": {"median_s": 0.151, "n": 20}, "labsandbox-oci/throughput": {"median_per_s": 15, "n": 20}}
        )
    )
    assert [line.split() for line in lines if not line.endswith("not measured")][1:] == [
        ["short", "runs,", "oci", ">=", "15", "/s", "15", "met"],
        ["labsandbox", "--help", "<=", "150", "ms", "151", "not", "met"],
    ]


@pytest.mark.timeout(600)
def test_a_hundred_runs_at_once_lose_nothing_and_leave_nothing(bench: Bench) -> None:
    pool, places = Pool(bench.audit), Places(Room.here())
    executor = Executor(bench.backend, bench.audit, pool=pool, places=places)
    executor.warm_up(Experiment(code=""), bench.policy, Request())
    ended: list[tuple[Outcome, str]] = []

    def one(number: int) -> None:
        sink = Recorded()
        done = executor.run(Experiment(code=f"print({number})"), bench.policy, Request(), sink)
        ended.append((done.outcome, sink.stdout.decode()))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.close()
    assert sorted(ended) == sorted((Outcome.COMPLETED, f"{number}\n") for number in range(100))
    assert bench.left() == [] and places.queue().claims == () and verify(bench.audit.path).ok
    records = list(bench.audit.records())
    taken = [record["execution"] for record in records if record["event"] == "start"]
    assert len(taken) == len(set(taken)) == 100
