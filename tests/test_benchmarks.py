"""`make bench` in small, where only ratios can be held to anything; and many runs at once."""

import threading
from pathlib import Path

import pytest

from benchmarks import containers, running
from executor.executor import Executor
from executor.experiment import Experiment, Outcome
from executor.places import Places, Room
from executor.warm import Pool
from policies.audit_check import verify
from policies.decision import Request
from tests.conftest import Bench, Recorded


def test_a_warm_container_is_many_times_faster_than_dockers_own_command_and_a_cold_one_not_slower(
    cpu_image: str,
) -> None:
    found = containers.measure(3)
    seconds = {name: figures["median_s"] for name, figures in found.items()}
    plain = seconds["docker-run/cold/torch/first_line"]
    for backend in ("oci", "docker"):
        assert 10 * seconds[f"labsandbox-{backend}/warm/torch/first_line"] < plain  # 80 on a quiet machine
        warm, cold = (seconds[f"labsandbox-{backend}/{warmth}/print/gone"] for warmth in ("warm", "cold"))
        assert warm < cold
        after = seconds[f"labsandbox-{backend}/warm/torch/gone"] - seconds[f"labsandbox-{backend}/warm/torch/end"]
        assert after < plain / 2
    assert seconds["labsandbox-oci/cold/print/gone"] < seconds["docker-run/cold/print/gone"]
    assert seconds["labsandbox-docker/cold/print/gone"] < 2 * seconds["docker-run/cold/print/gone"]


def test_supervising_costs_little_and_a_gigabyte_of_output_no_memory(cpu_image: str, tmp_path: Path) -> None:
    found = running.measure(tmp_path, rounds=1, quiet_s=5)
    for backend in ("oci", "docker"):
        assert found[f"supervisor/{backend}/core"]["share"] < 0.04  # its start and end are spread over 5 s here
        assert found[f"output/{backend}"]["grown_mib"] < 100
        assert found[f"step/{backend}/ratio"]["median"] < 2


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
    assert bench.backend.found() == [] and places.queue().claims == () and verify(bench.audit.path).ok
    records = list(bench.audit.records())
    taken = [record["execution"] for record in records if record["event"] == "start"]
    assert len(taken) == len(set(taken)) == 100
