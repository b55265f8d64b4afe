"""The playbook's eight factors, each run for real: a completed execution, and a verdict from what was measured."""

import math
from pathlib import Path

import pytest

from executor.backends.oci import OciBackend
from executor.executor import Executor
from executor.experiment import Experiment, KeptRecord, MetricRecord, Outcome, PlanRecord, RunRecord
from orchestrator.local_agents.playbook.goals import read_goal
from orchestrator.local_agents.playbook.writing import write_experiment
from policies.audit import AuditLog
from policies.decision import Request
from policies.model import PartialLimits, load_policy
from policies.state import cache_dir
from results.analysis import analyse
from results.findings import Analysis
from tests.conftest import Recorded
from tests.studies import EIGHT_FACTORS


def run_study(goal: str, state: Path, wall: str) -> tuple[Analysis, Recorded]:
    study = read_goal(goal)
    executor = Executor(OciBackend(state, cache_dir()), AuditLog(state / "audit.jsonl"))
    sink = Recorded()
    request = Request(limits=PartialLimits.model_validate({"wall": wall}))
    execution = executor.run(Experiment(code=write_experiment(study)), load_policy("default"), request, sink)
    assert execution.outcome is Outcome.COMPLETED, execution.stderr
    assert execution.metrics_rejected == 0
    assert "results.json" in sink.files
    return analyse(sink.records), sink  # type: ignore[arg-type]


def confirming(sink: Recorded) -> list[RunRecord]:
    """The runs that decide; of tuning, and for the noise floor, there may be more."""
    return [one for one in sink.records if isinstance(one, RunRecord) and one.phase == "confirm"]


@pytest.mark.parametrize("goal", EIGHT_FACTORS)
def test_each_factor_completes_in_little_time_with_an_honest_verdict(goal: str, own_state: Path) -> None:
    study = read_goal(goal)
    analysis, sink = run_study(goal, own_state, "45s" if "fp16" in goal else "24s")  # which a CPU has no unit for
    first = next(record for record in sink.records if not isinstance(record, KeptRecord))
    assert isinstance(first, PlanRecord), "the plan stands before anything ran"
    assert [arm.name for arm in analysis.arms] == [arm.name for arm in study.arms]
    assert analysis.primary == study.primary
    pairs = min((contrast.pairs for contrast in analysis.contrasts), default=0)
    assert pairs >= 1 or analysis.verdict.word == "inconclusive"
    if pairs < 6:
        assert analysis.verdict.word == "inconclusive"
    losses = [record.values["train_loss"] for record in sink.records if isinstance(record, MetricRecord)]
    assert losses and all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize(
    "goal",
    [
        "Does AdamW beat SGD in accuracy on digits?",
        "Does gradient clipping at 0.5 help a transformer with Lion?",
        "How much slower is bf16 in 6 runs?",
    ],
)
def test_what_a_goal_says_besides_its_factor_is_run_as_said(goal: str, own_state: Path) -> None:
    study = read_goal(goal)
    analysis, sink = run_study(goal, own_state, "24s")
    plan = next(record for record in sink.records if isinstance(record, PlanRecord))
    assert (plan.primary, plan.lower_is_better) == (study.primary, study.lower_is_better)
    assert len(plan.seeds) == study.seeds and bool(plan.tune) == bool(study.tune)
    assert all(arm.ok for arm in analysis.arms)


def test_checkpointing_saves_memory_and_leaves_the_loss_alone(own_state: Path) -> None:
    analysis, sink = run_study("Measure memory savings from gradient checkpointing", own_state, "60s")
    off, on = analysis.arms
    assert analysis.verdict.word == "better" and analysis.verdict.arm == "on"
    assert on.mean is not None and off.mean is not None and on.mean < 0.6 * off.mean
    runs = {(r.seed, r.arm): r.values["val_loss"] for r in confirming(sink)}
    for seed in range(8):
        assert runs[seed, "off"] == pytest.approx(runs[seed, "on"], abs=1e-3)


def test_data_parallel_training_gives_throughput_and_the_same_loss_on_one_and_two_devices(own_state: Path) -> None:
    analysis, sink = run_study("Compare data-parallel training on 1 vs 2 devices with 2 seeds", own_state, "60s")
    one, two = analysis.arms
    assert (one.ok, two.ok) == (2, 2) and analysis.primary == "samples_per_s"
    runs = {(r.seed, r.arm): r.values for r in confirming(sink)}
    for seed in (0, 1):
        losses = [runs[seed, arm]["val_loss"] for arm in ("1 device", "2 devices")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3), "the devices share one and the same training"
        assert all(runs[seed, arm]["samples_per_s"] > 0 for arm in ("1 device", "2 devices"))
