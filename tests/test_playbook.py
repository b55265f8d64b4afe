"""Promises of the playbook: goals as people phrase them are understood, others are refused, and the code is sound."""

import ast
import contextlib
import json
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.local_agents.playbook.earlier import from_earlier
from orchestrator.local_agents.playbook.engine import PlaybookEngine
from orchestrator.local_agents.playbook.goals import read_goal
from orchestrator.local_agents.playbook.study import Study, UnknownGoal
from orchestrator.local_agents.playbook.writing import write_experiment
from orchestrator.recall import HEADING
from tests.studies import EIGHT_FACTORS


@pytest.mark.parametrize(
    ("goal", "factor", "arms"),
    [
        ("Compare AdamW vs. Lion optimizer on small transformer training", "optimizer", ["AdamW", "Lion"]),
        ("Does Lion beat AdamW?", "optimizer", ["Lion", "AdamW"]),
        ("adam-w versus lion", "optimizer", ["AdamW", "Lion"]),
        ("Is SGD with momentum better than Adam?", "optimizer", ["SGD", "Adam"]),
        ("Compare d_model 64 vs 128", "hidden dimension", ["64", "128"]),
        ("Compare wd 1e-3 vs 1e-1", "weight decay", ["0.001", "0.1"]),
        ("Compare batch_size 8 and 32", "batch size", ["8", "32"]),
        ("compare adamw, lion and sgd", "optimizer", ["AdamW", "Lion", "SGD"]),
        ("SGD versus Adam versus RMSProp for a tiny language model", "optimizer", ["SGD", "Adam", "RMSprop"]),
        ("Is Lion as good as AdamW for transformers with weight decay?", "optimizer", ["Lion", "AdamW"]),
        ("AdamW vs Lion, each with its best learning rate", "optimizer", ["AdamW", "Lion"]),
        ("Compare optimizers on a small transformer", "optimizer", ["AdamW", "Lion", "SGD"]),
        ("Is Lion a good optimizer?", "optimizer", ["AdamW", "Lion"]),
        ("Which optimiser is better, Adam or RMSprop?", "optimizer", ["Adam", "RMSprop"]),
        ("Test if reducing hidden dimension by 50% impacts final loss", "hidden dimension", ["64", "32"]),
        ("What happens when we double the hidden size?", "hidden dimension", ["64", "128"]),
        ("hidden size 128 vs 64", "hidden dimension", ["128", "64"]),
        ("Increase model width by 50 %", "hidden dimension", ["64", "96"]),
        ("Compare hidden_dim 32, 64 and 128", "hidden dimension", ["32", "64", "128"]),
        ("Does increasing the hidden dimension by 50% reduce the final loss?", "hidden dimension", ["64", "96"]),
        ("Is the loss higher with a 25% smaller hidden dimension?", "hidden dimension", ["64", "48"]),
        ("Increase or decrease the hidden dimension by 50%", "hidden dimension", ["64", "32", "96"]),
        ("Reduce a hidden size of 128 by 50%", "hidden dimension", ["128", "64"]),
        ("Quadruple the hidden size", "hidden dimension", ["64", "256"]),
        ("Measure memory savings from gradient checkpointing", "gradient checkpointing", ["off", "on"]),
        ("How much slower is activation checkpointing?", "gradient checkpointing", ["off", "on"]),
        ("Test mixed precision (fp16) vs. full precision training stability", "precision", ["fp32", "fp16"]),
        ("bf16 vs fp16 vs fp32", "precision", ["fp32", "bf16", "fp16"]),
        ("Is mixed precision training stable?", "precision", ["fp32", "bf16"]),
        ("Does bfloat16 autocast hurt the loss?", "precision", ["fp32", "bf16"]),
        ("float 16 vs fp-32", "precision", ["fp32", "fp16"]),
        ("Compare half precision with full precision", "precision", ["fp32", "fp16"]),
        ("Test gradient clipping thresholds", "gradient clipping", ["none", "0.1", "1", "5"]),
        ("Test gradient clipping thresholds 0.5, 1.0, 5.0", "gradient clipping", ["0.5", "1", "5"]),
        ("no gradient clipping vs clipping at 1.0", "gradient clipping", ["none", "1"]),
        ("Train with and without gradient clipping", "gradient clipping", ["none", "1"]),
        ("Does grad clip of 0.5 help?", "gradient clipping", ["none", "0.5"]),
        ("Effect of clipping gradients on a 2-layer transformer", "gradient clipping", ["none", "0.1", "1", "5"]),
        ("Compare batch sizes for training stability", "batch size", ["16", "64", "256"]),
        ("Compare batch sizes 16,32,64 and 128", "batch size", ["16", "32", "64", "128"]),
        ("Triple the batch size", "batch size", ["32", "96"]),
        ("Double or halve the batch size", "batch size", ["32", "64", "16"]),
        ("Does doubling a batch size of 128 reduce the loss?", "batch size", ["128", "256"]),
        ("batch size 8 vs 256", "batch size", ["8", "256"]),
        ("Does doubling the batch size help?", "batch size", ["32", "64"]),
        ("small batch or large batch?", "batch size", ["16", "64", "256"]),
        ("Is a mini-batch size of 128 too large?", "batch size", ["32", "128"]),
        ("Evaluate weight decay impact on generalization", "weight decay", ["0", "0.01", "0.1", "1"]),
        ("weight decay 1e-4 vs 1e-2", "weight decay", ["0.0001", "0.01"]),
        ("Does a weight decay of 0.1 help AdamW?", "weight decay", ["0", "0.1"]),
        ("L2 regularization 0.01 vs 0.1 vs 0.5", "weight decay", ["0.01", "0.1", "0.5"]),
        ("Test learning rate warmup strategies", "warm-up", ["none", "10 %", "30 %"]),
        ("Warmup of 100 steps vs 1000 steps", "warm-up", ["100 steps", "1000 steps"]),
        ("no warm-up vs 5% warm-up", "warm-up", ["none", "5 %"]),
        ("Does warmup for 1,000 steps help?", "warm-up", ["none", "1000 steps"]),
        ("learning rate warm up: 10% or 20% or 50%", "warm-up", ["10 %", "20 %", "50 %"]),
    ],
)
def test_goals_as_people_phrase_them_are_understood(goal: str, factor: str, arms: list[str]) -> None:
    study = read_goal(goal)
    assert (study.factor, [arm.name for arm in study.arms]) == (factor, arms)


@pytest.mark.parametrize(
    "goal",
    [
        "bake a cake",
        "Compare dropout rates",
        "Compare Adam Smith and Karl Marx",
        "Find the best learning rate",
        "Compare ReLU vs GELU",
        "lion taming for beginners",
        "What is a batch?",
        "Compare AdamW vs Lion on ImageNet",
        "Compare AdamW vs Lion with ResNet-50",
        "Compare the lion and Adam in the bible",
        "Compare batch sizes for baking cookies",
        "Test warm-up exercises before a marathon",
        "Does batch size interact with dropout?",
        "Compare linear and cosine warmup",
        "Compare fp8 and fp16",
        "",
        "🦁 vs 🐯",
    ],
)
def test_a_goal_it_cannot_read_is_answered_with_what_it_knows_and_how_to_connect_a_model(goal: str) -> None:
    with pytest.raises(UnknownGoal) as refused:
        read_goal(goal)
    said = str(refused.value)
    assert "\n" not in said
    assert "weight decay" in said and "LUMENBRIDGE_BASE_URL" in said


@pytest.mark.parametrize(
    ("goal", "gpus", "arms", "primary"),
    [
        ("Compare data-parallel training on 1 vs 2 devices", 0, [1, 2], "samples_per_s"),
        ("Measure throughput of data parallel training on 1, 2 and 4 devices", 0, [1, 2, 4], "samples_per_s"),
        ("Does DDP on two processes change the loss?", 0, [1, 2], "test_loss"),
        ("How does distributed training scale to 8 GPUs?", 8, [1, 8], "samples_per_s"),
        ("Compare training a small transformer on one and four GPUs", 4, [1, 4], "samples_per_s"),
        ("Is data parallelism worth it?", 0, [1, 2], "samples_per_s"),
    ],
)
def test_a_data_parallel_goal_is_read(goal: str, gpus: int, arms: list[int], primary: str) -> None:
    study = read_goal(goal, gpus)
    assert study.factor == "data parallel" and study.primary == primary
    assert [arm.settings["devices"] for arm in study.arms] == arms
    assert study.lower_is_better is (primary == "test_loss") and not study.tune


@pytest.mark.parametrize(
    ("goal", "gpus", "said"),
    [
        ("AdamW vs Lion on a GPU", 0, "needs 1 GPU(s), and no GPU is given (--policy gpu --gpus 1)"),
        ("Compare data parallel training on 1 and 4 GPUs", 2, "needs 4 GPU(s), and 2 GPU(s) are given"),
        ("Compare data parallel training on 1 and 4 devices", 2, "needs 4 GPU(s)"),
        ("Compare data parallel training on 1 and 3 devices", 0, "1, 2, 4 or 8 devices, not 3"),
        ("Data parallel training of a digit classifier", 0, "on a transformer"),
        ("Compare model parallel training with data parallel training", 0, "only data are split"),
    ],
)
def test_what_devices_a_goal_needs_is_said_where_they_are_not_given(goal: str, gpus: int, said: str) -> None:
    with pytest.raises(UnknownGoal) as refused:
        read_goal(goal, gpus)
    assert said in str(refused.value)


def test_the_playbook_knows_from_the_prompt_which_gpus_are_given() -> None:
    prompt = "Goal: AdamW vs Lion on a GPU\nTask: implement\n\nLimits: 120s of wall clock, 16GiB of memory, {} GPUs, no network"
    assert "ON_GPU" in PlaybookEngine().code(prompt.format(1), "a").value.code
    with pytest.raises(UnknownGoal):
        PlaybookEngine().code(prompt.format(0), "a")


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        ("AdamW vs Sophia", "Sophia"),
        ("Compare AdamW, Lion and Muon optimizers", "Muon"),
        ("AdamW vs Frobnicator optimizer", "Frobnicator"),
        ("effect of warmup on batch size", "several factors"),
        ("batch size 0 vs 32", "outside"),
        ("batch sizes 1, 2, 3, 4, 5, 6, 7, 8", "at most"),
        ("batch size 16 vs 16", "twice"),
        ("gradient clipping at 50%", "percent"),
        ("weight decay -1 vs 0.1", "outside"),
        ("hidden dimension 63 vs 64", "multiple of 4"),
        ("warmup 100 steps vs 100000 steps", "outside"),
    ],
)
def test_an_arm_it_does_not_know_is_named_not_dropped(goal: str, said: str) -> None:
    with pytest.raises(UnknownGoal, match=said):
        read_goal(goal)


WORDS = st.one_of(
    st.sampled_from(
        ("compare", "AdamW", "Lion", "SGD", "vs", "and", "or", "by", "no", "without", "double", "\x00", "\u202e")
    ),
    st.sampled_from(("warmup", "batch size", "weight decay", "hidden dimension", "gradient clipping", "checkpointing")),
    st.sampled_from(
        ("SGD", "digits", "transformer", "accuracy", "faster", "double", "reduce", "increase", "seeds", "3x")
    ),
    st.sampled_from(("optimizer", "precision", "fp16", "bf16", "50%", "0.5", ",", "1e-4", "steps", "100", "1000", "☃")),
)


@pytest.mark.parametrize(
    ("goal", "harness"),
    [
        ("Does warm-up help a small transformer?", "transformer"),
        ("Compare batch sizes 8 and 32 on a language model", "transformer"),
        ("Compare batch sizes", "classifier"),
        ("Compare AdamW vs Lion", "transformer"),
        ("Compare AdamW vs Lion on handwritten digits", "classifier"),
        ("Does gradient clipping help a perceptron?", "classifier"),
    ],
)
def test_a_goal_that_names_a_model_or_data_gets_them(goal: str, harness: str) -> None:
    assert read_goal(goal).harness == harness


def test_a_goal_that_names_one_optimizer_beside_its_factor_is_trained_with_it() -> None:
    study = read_goal("Compare batch sizes 16 and 64 with SGD")
    assert [arm.settings for arm in study.arms] == [
        {"batch_size": 16, "optimizer": "SGD"}, {"batch_size": 64, "optimizer": "SGD"}
    ]  # fmt: skip
    assert study.tune == {"lr": read_goal("SGD vs AdamW").tune["lr"]["SGD"]}  # type: ignore[call-overload]
    assert "torch.optim.SGD" in write_experiment(study)


@pytest.mark.parametrize(
    ("goal", "primary", "lower"),
    [
        ("Does batch size affect accuracy?", "test_accuracy", False),
        ("How much slower is activation checkpointing?", "ms_per_step", True),
        ("How much faster is bf16 than fp32?", "ms_per_step", True),
        ("Does bf16 change the loss, and how much faster is it?", "test_loss", True),
        ("Does gradient checkpointing trade speed for memory?", "activation_mib", True),
    ],
)
def test_what_a_goal_asks_to_measure_decides(goal: str, primary: str, lower: bool) -> None:
    study = read_goal(goal)
    assert (study.primary, study.lower_is_better) == (primary, lower)
    code = write_experiment(study)
    assert f'primary="{primary}"' in code and f"lower_is_better={lower}" in code
    assert primary != "ms_per_step" or not study.tune, "a learning rate cannot be tuned by time"


@pytest.mark.parametrize("part", ["increase ", "the ", "large language ", "hidden ", "9", "-", "double ", "no clip "])
def test_a_long_goal_is_read_or_refused_soon(part: str) -> None:
    began = time.monotonic()
    for goal in (f"hidden dimension {part * 1200}", f"AdamW vs Lion {part * 1200} seeds"):
        with contextlib.suppress(UnknownGoal):
            read_goal(goal[:10_000])
    assert time.monotonic() - began < 3


def test_a_goal_that_says_how_many_seeds_gets_as_many() -> None:
    assert read_goal("AdamW vs Lion with 12 seeds").seeds == 12
    assert read_goal("AdamW vs Lion in three runs each").seeds == 3


@pytest.mark.parametrize(
    ("goal", "word"),
    [
        ("hidden dimension by 50%", "50%"),
        ("Change the hidden dimension by 50%", "50%"),
        ("Reduce the hidden dimension to 25%", "to 25%"),
        ("Reduce hidden sizes 128 and 64 by 50%", "percent"),
        ("Reduce the hidden dimension by 2x", "by how much"),
        ("hidden dimension 1 vs 64", "of 1 is outside"),
        ("embedding dimension vs hidden dimension", "embedding"),
        ("gradient clipping by value vs by norm", "by value"),
        ("gradient norm clipping vs value clipping", "value clipping"),
        ("Compare gradient clipping: norm vs value", "vs value"),
        ("gradient clipping vs weight clipping", "weight clipping"),
        ("per-layer gradient clipping", "per-layer"),
        ("dynamic gradient clipping", "dynamic"),
        ("Does doubling the weight decay help?", "doubling"),
        ("Does SGD without momentum beat Adam?", "without momentum"),
        ("SGD with momentum 0.5 vs AdamW", "momentum 0.5"),
        ("AdamW vs Lion with learning rates of 0.1", "learning rates"),
        ("AdamW vs Lion without gradient clipping", "without"),
        ("AdamW vs Lion with batch size 64", "batch size"),
        ("Is SGD as good as Adam with weight decay?", "weight decay"),
        ("weight decay 0.1 vs 0.01 at learning rate 0.001", "learning rate"),
        ("weight decay 0.1 vs 0.01 with SGD", "SGD"),
        ("AdamW vs Lion with a 12-layer transformer", "12 layer"),
        ("AdamW vs Lion on a large language model", "large language model"),
        ("AdamW vs Lion on a GPU", "GPU"),
        ("AdamW vs Lion with 30 seeds", "30 seeds"),
        ("AdamW vs Lion in memory use", "memory"),
        ("Does batch size affect training speed?", "speed"),
        ("Compare batch sizes 16 and 64 over 5 epochs", "5 epochs"),
        ("Compare batch sizes 16 and 64 after 100 steps", "100 steps"),
        ("Increase the batch size during training", "during"),
        ("batch size 16 vs 64 with batch norm", "batch norm"),
        ("Is Adam better than SGD on text classification?", "'text' and 'classification'"),
        ("constant vs linear warm-up", "constant"),
        ("warmup 10% vs 100 steps", "percent and in steps"),
        ("Warm-up of 100 vs 1000 steps on a transformer", "transformer"),
        ("fp16 with vs without loss scaling", "loss scaling"),
        ("memory savings of fp16", "memory"),
        ("gradient checkpointing on every other block", "every other"),
        ("gradient checkpointing for a classifier", "classifier"),
    ],
)
def test_a_word_that_it_knows_but_cannot_act_on_is_refused_by_name(goal: str, word: str) -> None:
    with pytest.raises(UnknownGoal) as refused:
        read_goal(goal)
    assert word in str(refused.value) and "\n" not in str(refused.value)


@given(st.text(max_size=200) | st.lists(WORDS, max_size=15).map(" ".join))
def test_any_text_is_a_study_with_two_arms_or_more_or_is_refused_in_one_line(goal: str) -> None:
    try:
        study = read_goal(goal)
    except UnknownGoal as refused:
        assert "\n" not in str(refused)
        return
    assert isinstance(study, Study)
    assert 2 <= len({arm.name for arm in study.arms}) == len(study.arms)
    ast.parse(write_experiment(study))


@pytest.mark.parametrize("goal", EIGHT_FACTORS)
def test_the_written_experiment_is_readable_self_contained_and_compares(goal: str) -> None:
    code = write_experiment(read_goal(goal))
    tree = ast.parse(code)
    imported = {
        (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else node.names[0].name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported <= {"json", "math", "time", "torch", "lab"}
    assert "lab.compare(" in code and "lab.log(" in code and '"""' in code.splitlines()[0]
    assert 120 <= len(code.splitlines()) <= 280
    assert max(map(len, code.splitlines())) <= 160
    assert "{%" not in code and "{{" not in code


def test_optimizers_are_tuned_as_they_are_known_to_differ_with_equally_many_trials() -> None:
    study = read_goal(EIGHT_FACTORS[0])
    asked = f"Goal: {EIGHT_FACTORS[0]}\nTask: plan\n"
    code, plan = write_experiment(study), PlaybookEngine().respond("ArchitectAgent", "", asked, "").value
    for name, low, high in (("lr", 1 / 10, 1 / 3), ("weight_decay", 3, 10)):
        grids = study.tune[name]
        assert isinstance(grids, dict) and len(grids["AdamW"]) == len(grids["Lion"])
        ratios = [lion / adam for adam, lion in zip(grids["AdamW"], grids["Lion"], strict=True) if adam]
        assert all(low <= ratio * 1.001 and ratio <= high * 1.001 for ratio in ratios)
    assert "one_by_one=True" in code and not any("weight_decay" in arm.settings for arm in study.arms)
    assert "betas=(0.9, 0.999)" in code and "betas=(0.9, 0.99)" in code
    assert "AdamW 0.9/0.999, Lion 0.9/0.99" in plan and "Tune weight_decay" in plan
    assert list(read_goal("AdamW vs SGD").tune) == ["lr"], "SGD has no decay, and would have trials for nothing"


def test_a_decay_of_zero_that_an_earlier_sprint_chose_does_not_make_a_grid_of_zeros() -> None:
    tuned = {"AdamW": {"lr": 0.03, "weight_decay": 0.0}, "Lion": {"lr": 0.01, "weight_decay": 0.5}}
    told = f"{HEADING}\n" + json.dumps({"sprint": "s", "goal": EIGHT_FACTORS[0], "tuned": tuned})
    study = from_earlier(read_goal(EIGHT_FACTORS[0]), told)
    grids, decays = study.tune["lr"], study.tune["weight_decay"]
    assert isinstance(grids, dict) and isinstance(decays, dict)
    assert grids["AdamW"][2] == 0.03 and decays["AdamW"] == [0.0, 0.1, 1.0]


def test_only_what_counts_bytes_is_called_deterministic() -> None:
    assert "deterministic=True" in write_experiment(read_goal("Measure memory savings from gradient checkpointing"))
    for goal in ("How much slower is activation checkpointing?", *EIGHT_FACTORS[:6], EIGHT_FACTORS[7]):
        assert "deterministic" not in write_experiment(read_goal(goal))


def test_a_goal_cannot_break_out_of_the_code_it_is_quoted_in() -> None:
    goal = 'AdamW vs Lion """ + __import__("os").system("x") # \\ \' {{ 7 * 7 }} {% raw %}'
    tree = ast.parse(write_experiment(replace(read_goal("AdamW vs Lion"), goal=goal)))
    (assigned,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "GOAL"
    )
    assert ast.literal_eval(assigned) == " ".join(goal.split())


def test_the_four_roles_answer_differently_and_the_plan_is_numbered() -> None:
    engine, prompt = PlaybookEngine(), "Goal: Compare AdamW vs. Lion\n\nGive your perspective."
    roles = ("ResearcherAgent", "ArchitectAgent", "CoderAgent", "ValidatorAgent")
    assert len({engine.respond(role, "", prompt, "").value for role in roles}) == 4
    assert engine.respond("ArchitectAgent", "", prompt + "\nTask: plan\n", "").value.startswith("1. ")


def test_the_validator_gives_no_advice_on_the_method_after_a_run_that_did_not_complete() -> None:
    numbers = '{"warnings": [], "verdict": {"word": "not a comparison"}}'
    prompt = f"Goal: x\nTask: validate\nOutcome: timeout: too long\nVerdict: None.\nNumbers: {numbers}\n"
    assert PlaybookEngine().respond("ValidatorAgent", "", prompt, "").value.splitlines() == [
        "None.", "Nothing should be concluded from a run that did not complete."
    ]  # fmt: skip


def test_the_validators_words_repeat_the_verdict_and_invent_no_number() -> None:
    verdict = "Inconclusive (underpowered). For b against a, the paired difference is +0.5."
    numbers = '{"warnings": ["3 of 8 runs of b diverged"], "verdict": {"word": "inconclusive"}}'
    prompt = f"Goal: x\nTask: validate\nOutcome: completed\nVerdict: {verdict}\nNumbers: {numbers}\n"
    said = PlaybookEngine().respond("ValidatorAgent", "", prompt, "").value
    assert said.startswith(verdict)
    assert "3 of 8 runs of b diverged" in said
    digits = {character for character in said.replace(verdict, "").replace("3 of 8", "") if character.isdigit()}
    assert not digits


def test_only_a_language_models_loss_is_told_as_a_ratio_of_perplexities() -> None:
    assert 'unit="nats"' in write_experiment(read_goal("Compare AdamW vs. Lion on a small transformer"))
    assert "unit=None" in write_experiment(read_goal("Compare AdamW vs. Lion on a small classifier"))
