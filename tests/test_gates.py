"""Promises of the gates and of the word: nothing is "better" by a way around the rules."""

import numpy as np
import pytest

from executor.experiment import AnyRecord, PlanRecord, RunRecord
from results.analysis import analyse
from results.findings import Analysis
from tests.comparisons import ended, study

A: list[float | None] = [1.0 + 0.1 * i + 0.013 * (i % 3) for i in range(8)]
GRID = [0.03, 0.1, 0.3]


def less(by: float, column: list[float | None] = A) -> list[float | None]:
    """The column, clearly lower by about that much."""
    return [None if value is None else value - by - 0.01 * value for value in column]


def clear(**plan: object) -> list[AnyRecord]:
    return study({"a": A, "b": less(0.5)}, **plan)  # type: ignore[arg-type]


def gate(analysis: Analysis, name: str) -> str:
    (found,) = [one for one in analysis.gates if one.name == name]
    return found.detail if not found.ok else ""


@pytest.mark.parametrize("outcome", ["timeout", "oom", "failed", "output_limit", "gpu_memory", "infrastructure"])
def test_what_did_not_complete_is_never_better(outcome: str) -> None:
    assert analyse(clear(), [ended()]).verdict.word == "better"
    analysis = analyse(clear(), [ended(), ended(outcome)])
    assert analysis.verdict.word == "inconclusive" and f"did not complete ({outcome})" in analysis.verdict.text


def test_who_stops_early_does_not_win_and_who_runs_out_of_time_may() -> None:
    """Six good pairs of ten: left out by the experiment, or on record as skipped."""
    first = [r for r in clear() if not isinstance(r, RunRecord) or r.seed < 6]
    analysis = analyse(first, [ended()])
    assert analysis.verdict.word == "inconclusive" and "4 planned runs were not made" in gate(analysis, "runs")
    skipped = [RunRecord(t=1, arm=arm, seed=seed, phase="confirm", status="skipped") for seed in (6, 7) for arm in "ab"]
    assert analyse([*first, *skipped], [ended()]).verdict.word == "better"


def test_records_that_were_rejected_are_told_with_the_verdict() -> None:
    assert analyse(clear(), [ended(rejected=2), ended(rejected=1)]).verdict.text.endswith(" 3 records were rejected.")
    lost = analyse([], [ended(rejected=1)])
    assert lost.verdict.word == "not a comparison" and "1 record was rejected" in lost.verdict.text
    assert lost.warnings == ["1 record was rejected"]


@pytest.mark.parametrize("value", [0.99, 0.1 + 0.2, 1e-7, 12345.678])
def test_a_metric_that_no_seed_changes_proves_nothing(value: float) -> None:
    """numpy's standard deviation of six times 0.99 is 1e-16, not 0."""
    constant = analyse(study({"a": A, "b": [value] * 8}))
    assert constant.verdict.word == "inconclusive" and "loss of b is the same under every seed" in constant.verdict.text
    same = analyse(study({"a": [value] * 8, "b": [value * (1 + 1e-15)] * 8}, deterministic=True))
    assert same.verdict.word == "inconclusive", "a count may be constant, but not the same in all arms"


def test_arms_that_lost_unequally_many_runs_are_not_called_alike() -> None:
    near = [value + 0.1 * (-1) ** i for i, value in enumerate(A) if value is not None]
    assert analyse(study({"a": A, "b": [*near]})).verdict.word == "no detectable difference"
    verdict = analyse(study({"a": A, "b": [*near[:6], None, None]})).verdict
    assert verdict.word == "inconclusive" and "2 of 8 runs of b diverged" in verdict.text


def test_lost_runs_are_told_with_every_verdict() -> None:
    verdict = analyse(study({"a": [*A[:7], None], "b": less(0.5)})).verdict
    assert (verdict.word, verdict.arm) == ("better", "b")
    assert verdict.text.endswith("Lost: 1 of 8 runs of a diverged.")


def test_an_arm_of_which_every_trial_failed_was_not_tuned() -> None:
    records = clear(tune={"lr": GRID}, tried=GRID)
    assert analyse(records).verdict.word == "better"
    failed = [
        r.model_copy(update={"status": "failed", "values": {}})
        if isinstance(r, RunRecord) and (r.phase, r.arm) == ("tune", "b")
        else r
        for r in records
    ]
    analysis = analyse(failed)
    assert analysis.arms[1].trials == 3 and analysis.arms[1].trials_usable == 0
    assert analysis.verdict.word == "inconclusive" and "no tuning trial of b" in gate(analysis, "trials")
    assert any("no tuning trial of b" in warning for warning in analysis.warnings)


def test_tuning_on_what_arms_are_compared_by_is_said_where_there_is_a_test_metric() -> None:
    def warned(primary: str, select: str | None) -> bool:
        records = clear(tune={"lr": GRID}, tried=GRID)
        values = {"val_loss": "loss", "test_loss": "loss"}
        told = [
            r.model_copy(update={"values": {name: r.values[one] for name, one in values.items()}})
            if isinstance(r, RunRecord)
            else r.model_copy(update={"primary": primary, "select": select})
            for r in records
            if isinstance(r, RunRecord | PlanRecord)
        ]
        return any("tuning" in warning for warning in analyse(told).warnings)

    assert warned("val_loss", None) and warned("val_loss", "val_loss") and warned("test_loss", None)
    assert not warned("test_loss", "val_loss")


def test_a_second_comparison_is_noticed_and_the_same_plan_in_a_further_container_is_none() -> None:
    records = clear()
    again = records[0].model_copy(update={"t": 200.0})
    assert analyse([*records, again]).verdict.word == "better"
    other = records[0].model_copy(update={"t": 200.0, "primary": "accuracy"})
    assert "2 different plans" in analyse([*records, other]).verdict.text


def test_only_an_arm_that_beats_the_runner_up_is_the_best() -> None:
    tied = [value + 0.02 * (-1) ** i for i, value in enumerate(less(0.5)) if value is not None]
    verdict = analyse(study({"a": A, "b": less(0.5), "c": [*tied]})).verdict
    assert (verdict.word, verdict.arm) == ("better", None)
    assert verdict.text.startswith(
        "No arm is called the best: thing b and thing c are better than thing a, and which arm is best is open. Thing b is"
    )
    won = analyse(study({"a": A, "b": less(0.5), "c": less(2.0)}))
    assert (won.verdict.word, won.verdict.arm) == ("better", "c")
    assert [(one.arm, one.baseline) for one in won.rivals] == [("c", "b")]
    assert won.verdict.text.startswith("Best: thing c; better than thing a and thing b. Thing b is better: for")


def test_of_two_equal_arms_the_luckier_is_not_called_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("results.contrasts.bca_interval", lambda differences: None)  # decides nothing
    drawn = np.random.default_rng(0).normal(size=(3000, 3, 12)) + np.array([[8.0], [0.0], [0.0]])
    found = [analyse(study(dict(zip("abc", arms, strict=True)))).verdict for arms in drawn.tolist()]
    assert all(one.word == "better" for one in found)
    assert sum(one.arm is not None for one in found) / 3000 <= 0.062, (
        "5 % in the long run; this is three standard errors above"
    )


def test_a_baseline_that_beats_one_arm_and_not_another_is_not_the_best() -> None:
    near = [value + 0.1 * (-1) ** i for i, value in enumerate(A) if value is not None]
    verdict = analyse(study({"a": A, "worse": less(-2.0), "near": [*near]})).verdict
    assert (verdict.word, verdict.arm) == ("inconclusive", None)
    assert "thing a is ahead of thing worse, and not told from thing near" in verdict.text
    both = analyse(study({"a": A, "worse": less(-2.0), "bad": less(-3.0)})).verdict
    assert (both.word, both.arm) == ("better", "a")
    assert both.text.startswith("Best: thing a; better than thing worse and thing bad. Thing a is better: for")
    middle = analyse(study({"a": A, "worse": less(-2.0), "b": less(2.0)})).verdict
    assert (middle.word, middle.arm) == ("better", "b")
    assert middle.text.startswith("Best: thing b; better than thing a; thing a is better than thing worse. ")
    none = [value + 0.1 * (-1) ** i for i, value in enumerate(A) if value is not None]
    undecided = analyse(study({"a": A, "b": [*none], "c": [*none]})).verdict
    assert undecided.word == "no detectable difference"
    assert undecided.text.startswith("No arm is best: no difference from thing a was detected. No difference between")


def test_a_corrected_p_is_called_so_and_a_small_one_that_decides_nothing_is_explained() -> None:
    several = analyse(study({"a": A, "b": less(0.5), "c": less(2.0)}))
    (one, _), (rival,) = several.contrasts, several.rivals
    assert one.p_adjusted == 2 * one.p
    text = several.verdict.text
    assert f"exact p {one.p:.3g}, p = {one.p_adjusted:.3g} (Holm))" in text and text.count("(Holm)") == 2
    assert f"pairs, exact p {rival.p:.3g})" in text, "one rival: nothing to correct for"
    assert "Holm" not in analyse(study({"a": A, "b": less(0.5)})).verdict.text
    # One huge difference widens the interval, and the test of signs does not mind it.
    outlier = [value + (100.0 if i == 0 else 0.1) for i, value in enumerate(A) if value is not None]
    verdict = analyse(study({"a": A, "b": [*outlier]})).verdict
    assert verdict.word == "no detectable difference"
    assert verdict.text.endswith("; p is under 0.05, but the interval must agree, and it holds 0.")


def test_an_arm_is_not_the_best_where_another_is_not_told_from_the_baseline_or_from_it() -> None:
    wide = [value - 0.4 + 0.9 * (-1) ** i for i, value in enumerate(A) if value is not None]
    verdict = analyse(study({"a": A, "b": less(0.5), "wide": [*wide]})).verdict
    assert (verdict.word, verdict.arm) == ("better", None)
    assert verdict.text.startswith(
        "No arm is called the best: thing b is better than thing a, and which arm is best is open."
    )
