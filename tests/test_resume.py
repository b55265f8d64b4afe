"""Promises of the journal: a sprint that is killed at any step is carried on to the same end, and nothing is done twice."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.experiment import Outcome
from orchestrator import AIResearchTeam
from orchestrator.agents.errors import AgentError, AgentRefused, AgentsUnavailable
from orchestrator.cli.sprints import _row
from orchestrator.errors import UsageProblem
from orchestrator.journal import EVENTS, Journal, peek
from orchestrator.lab_setup import LabOptions
from policies.audit import AuditLog
from policies.model import PartialLimits
from results.store import Store, StoreError
from tests.model_endpoint import ModelEndpoint, model_endpoint
from tests.test_sprint import COMPARISON

BROKEN = "import numpy\nnumpy.zeros(3) + numpy.zeros(4)\n"
FORK = multiprocessing.get_context("fork")


def script(system: str, user: str, before: int) -> str:
    """A model that errs twice, and then mends it."""
    if "complete Python program" in system:
        return "def f(:\n" if "numpy.zeros(3)" in user else COMPARISON if "Task: repair" in user else BROKEN
    for task, said in {
        "vote": "Vote: yes\nIt can be mended.",
        "diagnose": "The shapes differ.",
        "validate": "As computed.\nNext goal: Compare SGD vs. Lion\nWhy: it follows.",
        "plan": "1. Compare.",
    }.items():
        if f"Task: {task}\n" in user:
            return said
    return system.split(".")[0]


@pytest.fixture
def options() -> LabOptions:
    return LabOptions(backend="oci", limits=PartialLimits.model_validate({"wall": "20s"}))


def use(endpoint: ModelEndpoint, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("LABSANDBOX_LLM_BASE_URL", endpoint.url)
    patch.setenv("LABSANDBOX_LLM_MODEL", "scripted")


def without_times(value: Any) -> Any:
    """A summary, less what no two runs share: times, ids, memory."""
    changing = {
        "start_time", "end_time", "started_at", "ended_at", "sprint_id", "execution_id", "timings", "usage", "audit",
        "agents", "t", "seconds", "command",
    }  # fmt: skip
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in changing}
    if isinstance(value, list):
        return [without_times(inner) for inner in value]
    return re.sub(r"\d+(\.\d+)? (s|MiB)\b", "N", value) if isinstance(value, str) else value


def killed_after(lines: int, results: Path, options: LabOptions) -> Path:
    """Runs a sprint in a process of its own and kills it when its journal has so many lines; its folder."""
    child = FORK.Process(target=lambda: AIResearchTeam(results_dir=results, options=options).run_sprint("Is a better?"))
    child.start()
    deadline = time.monotonic() + 60
    while child.is_alive() and time.monotonic() < deadline:
        folders = list(results.glob("sprint_*"))
        if folders and (folders[0] / EVENTS).exists() and (folders[0] / EVENTS).read_bytes().count(b"\n") >= lines:
            break
        time.sleep(0.001)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    (folder,) = results.glob("sprint_*")
    return folder


def test_a_sprint_that_is_killed_at_any_step_ends_as_if_it_had_not_been(
    tmp_path: Path, options: LabOptions, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with model_endpoint(script) as endpoint:
        use(endpoint, monkeypatch)
        undisturbed = AIResearchTeam(results_dir=tmp_path / "whole", options=options).run_sprint("Is a better?")
        assert undisturbed["phases"]["self_healing"]["fix_applied"] is True
        (whole,) = (tmp_path / "whole").iterdir()
        steps = [step["step"] for step in peek(whole / EVENTS)]
        assert steps[-1] == "end" and len(steps) == len(set(steps)) > 25
        for lines in range(1, len(steps) + 1):
            results = tmp_path / f"killed{lines}"
            folder = killed_after(lines, results, options)
            (row,) = (_row(Store(results), run) for run in Store(results).runs())
            assert lines == len(steps) or (row["goal"] == "Is a better?" and row["verdict"])
            before = (folder / EVENTS).read_bytes()
            whole_lines = before[: before.rfind(b"\n") + 1]
            assert whole_lines.count(b"\n") >= lines
            summary = AIResearchTeam(results_dir=results).resume_sprint(folder.name)
            assert summary["end_time"] is not None
            assert without_times(summary) == without_times(undisturbed), f"killed after {steps[lines - 1]}"
            assert json.loads((folder / "sprint_summary.json").read_text()) == summary
            assert (folder / EVENTS).read_bytes().startswith(whole_lines)
            done = [step["step"] for step in peek(folder / EVENTS)]
            assert sorted(done) == sorted(steps)
            for name in ("experiment.py", "attempts/1/experiment.py", "attempts/2/experiment.py", "stdout.log"):
                assert without_times((folder / name).read_text()) == without_times((whole / name).read_text()), name
            # No question was asked again that had been answered, no experiment was run again that had ended.
            answered = [json.loads(line)["prompt"] for line in (folder / "agents.jsonl").read_bytes().splitlines()]
            assert len(answered) <= len((whole / "agents.jsonl").read_bytes().splitlines()) + 4
            starts = [record for record in _records(own_state) if record.get("sprint") == folder.name]
            assert 2 <= len([record for record in starts if record["event"] == "start"]) <= 3


def _records(state: Path) -> list[dict[str, Any]]:
    return list(AuditLog(state / "audit.jsonl").records())


def test_a_sprint_whose_code_agent_was_away_asks_it_again_and_nobody_else(
    tmp_path: Path, options: LabOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    with model_endpoint(script) as endpoint:
        use(endpoint, monkeypatch)
        endpoint.refuse = lambda body: "asleep" if "Python program" in body["messages"][0]["content"] else None
        with pytest.raises(AgentError, match="asleep"):
            AIResearchTeam(results_dir=tmp_path, options=options).run_sprint("Is a better?")
        asked = len(endpoint.asked)
        endpoint.refuse = lambda body: None
        (folder,) = tmp_path.iterdir()
        summary = AIResearchTeam(results_dir=tmp_path).resume_sprint(folder.name)
    assert summary["phases"]["self_healing"]["fix_applied"] is True
    systems = [body["messages"][0]["content"] for body in endpoint.asked[asked:]]
    assert systems[0].startswith("You write one complete Python program")
    assert "error" not in summary["phases"]["implementation"]


def test_an_experiment_that_was_interrupted_is_run_again(
    tmp_path: Path, options: LabOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def long(system: str, user: str, before: int) -> str:
        return (
            f"import time\nprint('began', flush=True)\ntime.sleep(2)\n{COMPARISON}"
            if "Python program" in system
            else "ok"
        )

    with model_endpoint(long) as endpoint:
        use(endpoint, monkeypatch)
        child = FORK.Process(target=_interrupted, args=(tmp_path, options))
        child.start()
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in tmp_path.glob("*/stdout.log")):
            assert time.monotonic() < deadline and child.is_alive()
            time.sleep(0.02)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGINT)
        child.join(30)
        assert child.exitcode == 0
        (folder,) = tmp_path.iterdir()
        summary = json.loads((folder / "sprint_summary.json").read_text())
        assert summary["phases"]["implementation"]["execution"]["outcome"] == "cancelled"
        summary = AIResearchTeam(results_dir=tmp_path).resume_sprint(folder.name)
    assert summary["phases"]["implementation"]["execution"]["outcome"] == "completed"
    assert "7 pairs" in summary["verdict"]
    assert (folder / "stdout.log").read_text().count("began") == 1


def _interrupted(results: Path, options: LabOptions) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    summary = AIResearchTeam(results_dir=results, options=options).run_sprint("Is a better?")
    assert summary["phases"]["implementation"]["execution"]["outcome"] == Outcome.CANCELLED


def test_a_sprint_that_ended_is_shown_and_one_that_runs_or_has_no_journal_is_refused(
    tmp_path: Path, options: LabOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    team = AIResearchTeam(results_dir=tmp_path, options=options)
    with model_endpoint(script) as endpoint:
        use(endpoint, monkeypatch)
        summary = AIResearchTeam(results_dir=tmp_path, options=options).run_sprint("Is a better?")
        asked = len(endpoint.asked)
        (folder,) = tmp_path.iterdir()
        assert team.resume_sprint(summary["sprint_id"]) == summary
        assert len(endpoint.asked) == asked
    with Journal(folder / EVENTS), pytest.raises(UsageProblem, match="still running"):
        team.resume_sprint(folder.name)
    old = Store(tmp_path).new("sprint")
    old.close()
    with pytest.raises(UsageProblem, match="no journal"):
        team.resume_sprint(old.id)
    for name in ("sprint_20990101_000000", "../etc", "", "x\x1b[2J"):
        with pytest.raises(StoreError, match="there is no sprint"):
            team.resume_sprint(name)


# ---- the journal itself ----


def test_a_step_is_done_once_and_its_error_is_an_end_too(tmp_path: Path) -> None:
    done: list[str] = []

    def work(name: str, error: AgentError | None = None) -> str:
        done.append(name)
        if error is not None:
            raise error
        return f"{name} \ud800 ü"

    for _ in range(2):
        with Journal(tmp_path / "j") as journal:
            assert journal.step("a", lambda: work("a")) == "a \ud800 ü"
            with pytest.raises(AgentRefused, match="no"):
                journal.step("b", lambda: work("b", AgentRefused("no")))
            with pytest.raises(AgentsUnavailable, match="away"):
                journal.step("c", lambda: work("c", AgentsUnavailable("away")), final=True)
            with pytest.raises(KeyboardInterrupt):
                journal.step("d", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert done == ["a", "b", "c", "c"]


@given(st.integers(0, 400))
def test_a_journal_that_was_torn_anywhere_keeps_every_whole_line(cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j"
        with Journal(path) as journal:
            for number in range(4):
                journal.step(f"step {number}", lambda number=number: {"n": number})  # type: ignore[misc]
        raw = path.read_bytes()[:cut]
        path.write_bytes(raw)
        with Journal(path) as journal:
            kept = [number for number in range(4) if journal.done(f"step {number}")]
            assert kept == list(range(raw.count(b"\n")))
            assert journal.step("step 3", lambda: "again") == ("again" if 3 not in kept else {"n": 3})
        assert [step["step"] for step in peek(path)] == [*(f"step {n}" for n in kept if n < 3), "step 3"]


def test_a_damaged_journal_is_wrong_use(tmp_path: Path) -> None:
    for text in ("not json\n", "[1]\n", '{"no": "step"}\n', "[" * 100_000 + "\n"):
        (tmp_path / "j").write_text(text)
        with pytest.raises(UsageProblem, match="damaged"):
            Journal(tmp_path / "j")
        assert (tmp_path / "j").read_text() == text


def test_a_full_disk_ends_a_step_and_leaves_the_journal_whole(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True)
    try:
        with Journal(tmp_path / "j") as journal:
            journal.step("small", lambda: "x")
            with pytest.raises(OSError, match="space"):
                journal.step("large", lambda: "y" * 100_000)
            assert journal.step("next", lambda: "z") == "z"
        assert [step["step"] for step in peek(tmp_path / "j")] == ["small", "next"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
