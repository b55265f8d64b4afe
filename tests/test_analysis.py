"""Promises of the verdict: right on data with a known truth, honest about what is missing, and never from a guess."""

import itertools
import json
import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from executor.experiment import AnyRecord, MetricRecord, PlanRecord, RunRecord
from results.analysis import analyse
from results.findings import Analysis, Noise
from results.statistics import bca_interval, cohens_dz, holm, pairs_needed, pairs_to_decide, sign_flip
from tests.comparisons import study


def test_a_clear_paired_effect_is_found_where_the_arms_overlap() -> None:
    a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    b = [value - 0.1 - 0.01 * index for index, value in enumerate(a)]
    analysis = analyse(study({"a": a, "b": b}))
    assert (analysis.verdict.word, analysis.verdict.arm) == ("better", "b")
    assert analysis.contrasts[0].mean == pytest.approx(-0.135)
    assert analysis.contrasts[0].p == pytest.approx(2 / 2**8)


def test_the_interval_is_students_and_the_sign_matters() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=9), rng.normal(1.0, size=9)
    (contrast,) = analyse(study({"a": list(a), "b": list(b)})).contrasts
    low, high = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (contrast.low, contrast.high) == (pytest.approx(low), pytest.approx(high))
    assert contrast.d_z == pytest.approx((b - a).mean() / (b - a).std(ddof=1))


def test_higher_is_better_turns_the_verdict_round() -> None:
    a, b = [0.5 + 0.01 * i for i in range(8)], [0.6 + 0.011 * i for i in range(8)]
    assert analyse(study({"a": a, "b": b})).verdict.arm == "a"
    assert analyse(study({"a": a, "b": b}, lower=False)).verdict.arm == "b"


def test_fewer_than_six_pairs_never_decide_and_say_what_would_be_needed() -> None:
    analysis = analyse(study({"a": [1.0, 1.1, 1.2, 1.3, 1.4], "b": [2.0, 2.1, 2.2, 2.3, 2.41]}))
    assert analysis.verdict.word == "inconclusive"
    assert "underpowered" in analysis.verdict.text
    assert "about 6 pairs would be needed" in analysis.verdict.text


def test_no_effect_is_no_detectable_difference_not_equality() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(size=10)
    noise = np.array([0.1, -0.1] * 5)
    analysis = analyse(study({"a": list(base), "b": list(base + noise)}))
    assert analysis.verdict.word == "no detectable difference"
    assert "was detected" in analysis.verdict.text


def test_failed_and_diverged_runs_stay_in_the_count_and_are_told() -> None:
    a: list[float | None] = [1.0 + 0.01 * i for i in range(8)]
    b: list[float | None] = [0.9 + 0.012 * i for i in range(6)] + [None, None]
    analysis = analyse(study({"a": a, "b": b}))
    assert analysis.arms[1].diverged == 2
    assert analysis.contrasts[0].pairs == 6
    assert "2 of 8 runs of b diverged" in analysis.warnings


def test_runs_that_an_end_cut_off_are_not_said_to_have_lacked_time() -> None:
    cut = study({"a": [1.0, 1.1, 1.2], "b": [2.0, 2.1, 2.2]})[:-2]
    analysis = analyse(cut)
    assert [(arm.ok, arm.skipped, arm.missing) for arm in analysis.arms] == [(2, 0, 1), (2, 0, 1)]
    assert analysis.warnings == ["1 of 3 runs of a were not made", "1 of 3 runs of b were not made"]
    skipped = RunRecord(t=1, arm="a", seed=2, phase="confirm", status="skipped")
    assert "1 of 3 runs of a did not fit into the time" in analyse([*cut, skipped]).warnings


def test_an_arm_that_always_diverges_gives_no_verdict_but_is_named() -> None:
    analysis = analyse(study({"a": [1.0] * 8, "b": [None] * 8}))
    assert analysis.verdict.word == "inconclusive"
    assert "8 of 8 runs of b diverged" in analysis.verdict.text


def test_an_arm_that_wins_only_where_it_survives_does_not_win() -> None:
    a: list[float | None] = [1.0 + 0.01 * i for i in range(10)]
    b: list[float | None] = [0.5 + 0.011 * i for i in range(8)] + [None, None]
    verdict = analyse(study({"a": a, "b": b})).verdict
    assert verdict.word == "inconclusive" and "fail or diverge" in verdict.text
    assert analyse(study({"b": b, "a": a})).verdict.word == "inconclusive"


@pytest.mark.parametrize(("arms", "pairs"), [("ab", 6), ("abc", 7), ("abcd", 7), ("abcde", 8)])
def test_more_arms_need_more_pairs_before_silence_means_anything(arms: str, pairs: int) -> None:
    assert pairs_to_decide(len(arms) - 1) == pairs

    def word(count: int) -> str:
        noise = [0.1 * (-1) ** seed * (1 + seed % 3) for seed in range(count)]
        columns = {arm: [1.0 + seed + index * noise[seed] for seed in range(count)] for index, arm in enumerate(arms)}
        return analyse(study(columns)).verdict.word

    assert word(pairs - 1) == "inconclusive"
    assert word(pairs) == "no detectable difference"


def test_runs_that_the_plan_does_not_name_count_for_nothing() -> None:
    records = study({"a": [1.0] * 8, "b": [1.1, 1.2] * 4})
    extra = [
        RunRecord(t=1, arm=arm, seed=seed, phase="confirm", status="ok", values={"loss": 0.0 if arm == "b" else 9.0})
        for seed in (*range(8), *range(1000, 1600))
        for arm in "ab"
    ]
    assert analyse([*records, *extra]) == analyse(records)


def test_identical_arms_are_noticed() -> None:
    values = [1.0, 1.5, 2.0, 1.2, 1.1, 1.7, 1.9]
    analysis = analyse(study({"a": values, "b": values}))
    assert analysis.verdict.word == "inconclusive"
    assert "identical" in analysis.verdict.text


def test_an_arms_name_is_never_taken_for_a_finding() -> None:
    a: list[float | None] = [1.0 + 0.01 * i for i in range(8)]
    b: list[float | None] = [0.5 + 0.011 * i for i in range(7)] + [None]
    verdict = analyse(study({"identical twins": b, "a": a[:7]})).verdict
    assert "all arms" not in verdict.text and "identical twins is ahead" not in verdict.text
    assert (verdict.word, verdict.arm) == ("better", "identical twins")


def test_a_p_is_called_exact_only_where_every_sign_pattern_was_counted() -> None:
    def analysis(count: int) -> tuple[bool, str]:
        a = [float(seed) for seed in range(count)]
        found = analyse(study({"a": a, "b": [value - 1 - value / 100 for value in a]}))
        return found.contrasts[0].exact, found.verdict.text

    assert analysis(16)[0] is True and "exact p" in analysis(16)[1]
    assert analysis(17)[0] is False and "exact" not in analysis(17)[1] and "Monte Carlo p" in analysis(17)[1]


def test_a_deterministic_difference_is_decided_once_there_are_enough_pairs() -> None:
    def analysis(pairs: int, **plan: object) -> Analysis:
        return analyse(study({"off": [17.0] * pairs, "on": [2.9] * pairs}, **plan))

    assert analysis(8, deterministic=True).verdict.word == "better"
    assert analysis(8, deterministic=True).contrasts[0].d_z is None
    assert analysis(4, deterministic=True).verdict.word == "inconclusive"
    assert "the same under every seed" in analysis(8).verdict.text, "nobody said that it would be"


def test_a_best_value_at_the_edge_of_its_grid_leaves_the_order_open() -> None:
    a, b = [1.0 + 0.01 * i for i in range(8)], [0.5 + 0.011 * i for i in range(8)]
    below, around = [0.01, 0.03, 0.1], [0.03, 0.1, 0.3]
    analysis = analyse(study({"a": a, "b": b}, tune={"lr": below}, tried=below))
    assert analysis.verdict.word == "inconclusive"
    assert "edge" in analysis.verdict.text
    inside = analyse(study({"a": a, "b": b}, tune={"lr": around}, tried=around))
    assert inside.verdict.word == "better"


def test_the_edge_is_that_of_the_values_tried_and_trials_without_time_are_told() -> None:
    a, b = [1.0 + 0.01 * i for i in range(8)], [0.5 + 0.011 * i for i in range(8)]
    grid = [0.01, 0.03, 0.1, 0.3, 1.0]
    half = analyse(study({"a": a, "b": b}, tune={"lr": grid}, tried=[0.1, 0.03], skipped=[0.3, 0.01, 1.0]))
    assert half.verdict.word == "inconclusive" and "edge" in half.verdict.text
    assert "3 of 5 tuning trials of a did not fit into the time" in half.warnings
    assert "the best lr of b (0.1) is at the edge of what was tried" in half.warnings
    enough = analyse(study({"a": a, "b": b}, tune={"lr": grid}, tried=[0.1, 0.03, 0.3], skipped=[0.01, 1.0]))
    assert enough.verdict.word == "better"
    assert "2 of 5 tuning trials of b did not fit into the time" in enough.warnings
    none = analyse(study({"a": a, "b": b}, tune={"lr": grid}, skipped=grid))
    assert none.verdict.word == "inconclusive"
    assert "the lr of a (0.1) was not tuned" in none.warnings
    two = analyse(study({"a": a, "b": b}, tune={"lr": [0.1, 0.3]}, tried=[0.1, 0.3]))
    assert two.verdict.word == "inconclusive", "of two numbers the best is always at the edge"
    words = study({"a": a, "b": b}, tune={"lr": ["cosine", "linear"]})
    chosen = [r.model_copy(update={"config": {"lr": "linear"}}) if isinstance(r, RunRecord) else r for r in words]
    tried = [r.model_copy(update={"phase": "tune", "seed": 99}) for r in chosen[1:3] if isinstance(r, RunRecord)]
    assert analyse([*chosen, *tried]).verdict.word == "better", "words have no edge"
    none_at_all = study({"a": a, "b": b}, tune={"lr": [0.1, 0.3]}, tried=[0.1, 0.3])
    off = [
        r.model_copy(update={"config": {"lr": r.config["lr"] - 0.1}}) if isinstance(r, RunRecord) else r
        for r in none_at_all
    ]
    assert analyse(off).verdict.word == "better", "below zero there is nothing to try"


def test_several_arms_are_corrected_for_being_several() -> None:
    rng = np.random.default_rng(1)
    arms = {name: list(rng.normal(size=8)) for name in "abcde"}
    for contrast in analyse(study(arms)).contrasts:
        assert contrast.p_adjusted >= contrast.p


def test_arms_that_were_lost_still_count_among_the_comparisons_that_were_planned() -> None:
    a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    less = [value - 0.1 - 0.001 * value for value in a]
    alone = analyse(study({"a": a, "b": less}))
    assert (alone.contrasts[0].p_adjusted, alone.verdict.word) == (2 / 2**6, "better")
    lost = analyse(study({"a": a, "b": less, "c": [None] * 6, "d": [None] * 6}))
    assert lost.contrasts[0].p_adjusted == pytest.approx(3 * 2 / 2**6), "three were planned, whatever came of two"
    assert lost.verdict.word == "inconclusive"
    assert "about 7 pairs would be needed" in lost.verdict.text


def test_rivals_that_were_lost_count_among_those_that_the_leader_was_to_beat() -> None:
    a = [float(seed) for seed in range(8)]
    ahead = [value - 2 - value / 100 for value in a]
    second = [value - 1 - value / 200 if value < 6 else None for value in a]
    found = analyse(study({"a": a, "b": ahead, "c": second, "d": [None] * 8, "e": [None] * 8}))
    assert [(one.baseline, one.p_adjusted) for one in found.rivals] == [("c", pytest.approx(3 * 2 / 2**6))]
    assert (found.verdict.word, found.verdict.arm) == ("better", None)
    assert "about 7 pairs would be needed" in found.verdict.text


def test_holm_matches_a_worked_example() -> None:
    # 0.01*4, max(0.04, 0.03*3)=0.09 ... worked by hand from Holm's step-down rule.
    assert holm([0.01, 0.04, 0.03, 0.005], 4) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.04], 4) == pytest.approx([0.04, 0.12])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(0, 4))
def test_holm_never_lowers_a_p_and_keeps_the_order(values: list[float], lost: int) -> None:
    adjusted = holm(values, len(values) + lost)
    assert adjusted == holm([*values, *[1.0] * lost], len(values) + lost)[: len(values)]
    assert all(p <= q <= 1 for p, q in zip(values, adjusted, strict=True))
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


@settings(deadline=None)
# Eighths are exact in binary: sums that differ by rounding alone would be counted in different ways.
@given(st.lists(st.integers(-80, 80).map(lambda eighths: eighths / 8), min_size=2, max_size=8))
@example([-2.875, 3.375, -3.75, -9.625, 10.0, 2.875])  # sums to nothing: every pattern is as extreme
def test_the_sign_flip_test_counts_every_pattern(differences: list[float]) -> None:
    signs = itertools.product((1, -1), repeat=len(differences))
    patterns = [abs(sum(s * d for s, d in zip(pattern, differences, strict=True))) for pattern in signs]
    expected = sum(total >= abs(sum(differences)) for total in patterns) / len(patterns)
    assert sign_flip(np.array(differences)) == pytest.approx(expected)


TRUE_EFFECTS = [0.0, 0.7]
SIMULATED = 10_000


@pytest.mark.parametrize("effect", TRUE_EFFECTS)
def test_on_data_of_known_truth_intervals_cover_and_errors_are_as_rare_as_promised(
    effect: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand whole analyses: coverage within a point of nominal, and at most 5 % of null effects called one."""
    monkeypatch.setattr(
        "results.contrasts.bca_interval", lambda differences: None
    )  # half the time, and decides nothing
    rng = np.random.default_rng(20261123)
    baseline = rng.normal(3.0, 1.0, size=(SIMULATED, 8))
    other = baseline + rng.normal(effect, 1.0, size=(SIMULATED, 8))
    covered = called = right = 0
    for a, b in zip(baseline.tolist(), other.tolist(), strict=True):
        analysis = analyse(study({"a": a, "b": b}))
        (contrast,) = analysis.contrasts
        covered += contrast.low <= effect <= contrast.high
        called += analysis.verdict.word == "better"
        right += analysis.verdict.arm == "a"
    assert 0.94 <= covered / SIMULATED <= 0.96
    if effect:
        assert right / called > 0.99 and called / SIMULATED > 0.3
    else:
        assert called / SIMULATED <= 0.05


@pytest.mark.parametrize(
    ("d_z", "contrasts", "least"),
    [
        (2.5, 1, 6),
        (1.5, 1, 7),
        (1.2, 1, 9),
        (1.0, 1, 11),
        (0.8, 1, 15),
        (0.6, 1, 25),
        (1.5, 3, 9),
        (1.0, 2, 13),
        (0.6, 5, 37),
    ],
)
def test_the_pairs_said_to_be_needed_are_enough_for_the_rule_that_decides(
    d_z: float, contrasts: int, least: int
) -> None:
    """least: by simulation of the sign-flip test and the t interval together, at 80 % power."""
    differences = np.array([-1.0, 1.0] * 4)
    differences = differences / differences.std(ddof=1) + d_z
    assert cohens_dz(differences) == pytest.approx(d_z)
    needed = pairs_needed(differences, contrasts)
    assert needed is not None and least <= needed <= least + 1
    assert pairs_needed(np.array([-1.0, 1.0, 1e-9])) is None, "nobody runs so many"


def test_256_pairs_are_tested_within_little_memory_and_time() -> None:
    differences = np.random.default_rng(5).normal(0.15, 1.0, size=256)
    began = time.process_time()
    tracemalloc.start()
    p = sign_flip(differences)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20 and time.process_time() - began < 1.5
    assert p == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, rel=0.2)


def test_null_effects_are_called_an_effect_at_most_as_often_as_promised_also_with_many_arms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten thousand whole analyses where each of three contrasts could be the wrong one."""
    monkeypatch.setattr("results.contrasts.bca_interval", lambda differences: None)
    columns = np.random.default_rng(7).normal(size=(SIMULATED, 4, 8)).tolist()
    wrong = sum(analyse(study(dict(zip("abcd", arms, strict=True)))).verdict.word == "better" for arms in columns)
    assert wrong / SIMULATED <= 0.05


def test_the_bootstrap_interval_covers_as_it_says_once_there_are_many_pairs() -> None:
    rng = np.random.default_rng(9)
    found = [bca_interval(rng.normal(0.3, 1.0, size=60)) for _ in range(600)]
    covered = sum(interval is not None and interval[0] <= 0.3 <= interval[1] for interval in found)
    assert 0.92 <= covered / 600 <= 0.975
    assert bca_interval(np.array([0.5] * 8)) is None


def curves(
    values: dict[str, list[tuple[float, float, float]]], seeds: int = 8, seconds: float = 10.0
) -> list[AnyRecord]:
    """A study whose arms log (step, second, loss), a little different under every seed, and end with the last."""
    rng = np.random.default_rng(3)
    records: list[AnyRecord] = [
        PlanRecord(
            t=0, factor="thing", arms=list(values), seeds=list(range(seeds)), primary="loss", lower_is_better=True
        )
    ]
    for seed in range(seeds):
        for arm, points in values.items():
            shift = float(rng.normal(0, 0.01))
            start = 100.0 * seed
            for step, second, loss in points:
                records.append(
                    MetricRecord(
                        t=start + second, step=step, arm=arm, seed=seed, phase="confirm", values={"loss": loss + shift}
                    )
                )
            records.append(
                RunRecord(
                    t=start + points[-1][1], arm=arm, seed=seed, phase="confirm", status="ok",
                    values={"loss": points[-1][2] + shift}, seconds=points[-1][1],
                )
            )  # fmt: skip
    return records


def test_arms_are_also_compared_after_equally_many_seconds_and_by_steps_to_target() -> None:
    slow = [(0.0, 0.5, 1.5), (1.0, 4.0, 0.9), (2.0, 8.0, 0.5), (3.0, 12.0, 0.2)]
    fast = [(1.0, 1.0, 0.8), (2.0, 2.0, 0.6), (3.0, 3.0, 0.4)]
    analysis = analyse(curves({"fast": fast, "slow": slow}))
    assert (analysis.verdict.word, analysis.verdict.arm) == ("better", "slow")
    (timed,) = analysis.at_equal_time
    assert (timed.pairs, timed.seconds) == (8, pytest.approx(3.0))
    # At 3 s the slow one is on its way from 1.5 (at 0.5 s) to 0.9 (at 4 s): at 1.5 - 0.6 * 2.5 / 3.5, and the fast at 0.4.
    assert timed.mean == pytest.approx(1.5 - 0.6 * 2.5 / 3.5 - 0.4, abs=0.02)
    assert analysis.target is not None and analysis.target.value == pytest.approx(0.4, abs=0.02)
    steps = {reached.arm: reached.steps for reached in analysis.target.arms}
    assert steps["fast"] == pytest.approx(3.0) and steps["slow"] == pytest.approx(3.0, abs=0.5)


@pytest.mark.parametrize(
    ("plan", "steps"),
    [
        ({"primary": "accuracy", "select": "drawn"}, [1, 2]),
        ({"primary": "accuracy", "select": "drawn", "select_lower_is_better": True}, [1, 1]),
    ],
)
def test_steps_to_target_go_the_way_of_the_metric_that_is_drawn(plan: dict[str, object], steps: list[int]) -> None:
    """Higher accuracies are better, and so is what tuning chose by, unless the plan says otherwise."""
    up = curves({"quick": [(1.0, 1.0, 0.85), (2.0, 2.0, 0.9)], "slow": [(1.0, 1.0, 0.2), (2.0, 2.0, 0.8)]})
    records: list[AnyRecord] = []
    for record in up:
        if isinstance(record, PlanRecord):
            record = record.model_copy(update={"lower_is_better": False, **plan})
        else:
            name = "drawn" if isinstance(record, MetricRecord) else "accuracy"
            record = record.model_copy(update={"values": {name: record.values["loss"]}})
        records.append(record)
    target = analyse(records).target
    assert target is not None
    first = {reached.arm: reached.steps for reached in target.arms}
    assert first["quick"] == pytest.approx(steps[0], abs=0.6) and first["slow"] == pytest.approx(steps[1], abs=0.6)


def test_what_a_curves_metric_does_not_say_of_its_direction_is_not_guessed() -> None:
    records = [
        record.model_copy(update={"values": {"thing": record.values["loss"]}})
        if isinstance(record, MetricRecord)
        else record
        for record in curves({"a": [(1.0, 1.0, 0.8), (2.0, 2.0, 0.9)], "b": [(1.0, 1.0, 0.2), (2.0, 2.0, 0.8)]})
    ]
    assert analyse(records).at_equal_time and analyse(records).target is None


def test_comparisons_at_equal_time_are_corrected_for_being_several() -> None:
    arms = {name: [(1.0, 1.0, 0.8), (2.0, 2.0, 0.5 + 0.1 * place)] for place, name in enumerate("abc")}
    records = curves(arms)
    assert [one.p for one in analyse(records).at_equal_time] == pytest.approx([4 / 2**8] * 2)
    lost = [one for one in records if not isinstance(one, MetricRecord) or one.arm != "c"]
    assert [one.p for one in analyse(lost).at_equal_time] == pytest.approx([4 / 2**8]), "two were planned"


def test_perplexities_are_compared_where_the_loss_is_in_nats() -> None:
    a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    b = [value - 0.1 - 0.001 * index for index, value in enumerate(a)]
    (contrast,) = analyse(study({"a": a, "b": b}, unit="nats")).contrasts
    assert contrast.ratio == pytest.approx(math.exp(contrast.mean))
    assert analyse(study({"a": a, "b": b})).contrasts[0].ratio is None


def noisy(again: float) -> Analysis:
    a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    records = study({"a": a, "b": [value - 0.1 - 0.001 * value for value in a]}, repeats=1)
    repeat = RunRecord(t=2, arm="a", seed=0, phase="noise", status="ok", values={"loss": again}, config={"lr": 0.1})
    return analyse([*records, repeat])


def test_an_effect_within_the_noise_of_the_baseline_is_no_finding() -> None:
    assert noisy(1.0).noise == Noise(repeats=1, largest=0.0) and noisy(1.0).verdict.word == "better"
    assert noisy(1.05).verdict.word == "better"
    drowned = noisy(1.3)
    assert drowned.verdict.word == "inconclusive" and "differs by up to 0.3 from itself" in drowned.verdict.text


def test_each_contrast_is_held_against_the_noise() -> None:
    a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    arms = {
        "a": a,
        "near": [value - 0.1 - 0.001 * value for value in a],
        "far": [value - 2 - 0.01 * value for value in a],
    }
    repeat = RunRecord(t=2, arm="a", seed=0, phase="noise", status="ok", values={"loss": 1.3}, config={"lr": 0.1})
    verdict = analyse([*study(arms, repeats=1), repeat]).verdict
    assert (verdict.word, verdict.arm) == ("better", "far")
    assert "No difference beyond that of the baseline from itself between thing near" in verdict.text
    alone = analyse([*study(arms | {"far": a}, repeats=1), repeat])
    assert alone.verdict.word == "inconclusive", "what is left is within the noise"


def test_seeds_that_the_experiment_replaced_by_one_are_noticed() -> None:
    a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    records = study({"a": a, "b": [value - 0.1 - 0.001 * value for value in a]})
    derived = [r.model_copy(update={"reseeded": r.seed + 1000}) if isinstance(r, RunRecord) else r for r in records]
    assert analyse(derived).verdict.word == "better", "from the seed it was given it may derive its own"
    fixed = [r.model_copy(update={"reseeded": 42}) if isinstance(r, RunRecord) else r for r in records]
    assert "replaced different seeds by the same (42)" in analyse(fixed).verdict.text
    drawn = [
        r.model_copy(update={"generators": {"numpy": f"{r.seed}"}}) if isinstance(r, RunRecord) else r for r in records
    ]
    assert analyse(drawn).verdict.word == "better"
    alike = [r.model_copy(update={"generators": {"numpy": "0f"}}) if isinstance(r, RunRecord) else r for r in records]
    assert "replaced different seeds by the same (of numpy)" in analyse(alike).verdict.text


def test_arms_that_were_not_tuned_alike_are_not_ranked() -> None:
    a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    records = study(
        {"a": a, "b": [value - 0.1 - 0.001 * value for value in a]},
        tried=[0.01, 0.1, 1.0],
        tune={"lr": [0.01, 0.1, 1.0]},
    )
    assert analyse(records).verdict.word == "better"
    cut = [r for r in records if isinstance(r, RunRecord) and (r.phase, r.arm, r.config["lr"]) == ("tune", "a", 1.0)]
    favoured = [record for record in records if record not in cut]
    assert "not tuned alike: 2 of a, 3 of b" in analyse(favoured).verdict.text


def test_trainings_before_the_plan_are_no_plan() -> None:
    a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    plan, *runs = study({"a": a, "b": [value - 0.1 - 0.001 * value for value in a]})
    assert "before the plan" in analyse([*runs, plan]).verdict.text


def test_a_run_that_a_further_container_made_is_not_counted_as_skipped() -> None:
    a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    records = study({"a": a, "b": [value - 0.1 - 0.001 * value for value in a]})
    late = [r for r in records if isinstance(r, RunRecord) and r.seed == 5]
    first = [r if r not in late else r.model_copy(update={"status": "skipped", "values": {}}) for r in records]
    assert analyse(first).arms[0].skipped == 1
    whole = analyse([*first, *late])
    assert whole.arms[0].skipped == 0 and whole.verdict.word == "better"


def test_what_is_no_comparison_is_called_that() -> None:
    records: list[AnyRecord] = [MetricRecord(t=1, step=1, values={"loss": 0.25})]
    verdict = analyse(records).verdict
    assert verdict.word == "not a comparison"
    assert "loss 0.25" in verdict.text
    assert analyse([]).verdict.word == "not a comparison"


def test_numbers_that_no_training_has_are_still_numbers_on_record() -> None:
    records = curves({"a": [(0.0, 0.5, 1.5), (1.0, 1.0, 0.9)], "b": [(0.0, 0.5, 1.4), (1.0, 1.0, 0.5)]})
    for size in (1.7e308, -1.7e308):
        odd = [one.model_copy(update={"seconds": size}) if isinstance(one, RunRecord) else one for one in records]
        json.dumps(analyse(odd).model_dump(mode="json"), allow_nan=False)
        far = [one.model_copy(update={"step": size}) if isinstance(one, MetricRecord) else one for one in records]
        json.dumps(analyse(far).model_dump(mode="json"), allow_nan=False)


NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1.0])


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.text(min_size=1, max_size=5), st.lists(NUMBERS, min_size=1, max_size=9), min_size=1, max_size=4)
)
def test_any_recorded_numbers_give_a_verdict(values: dict[str, list[float]]) -> None:
    records = study({arm: [v if math.isfinite(v) else None for v in column] for arm, column in values.items()})
    with np.errstate(all="ignore"):
        assert analyse(records).verdict.text
