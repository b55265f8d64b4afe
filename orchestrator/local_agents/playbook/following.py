"""Which goal the playbook would take up after a study: one that it can read."""

from orchestrator.local_agents.playbook.study import Study

_OTHER_FACTOR = {
    "optimizer": "Does learning-rate warm-up improve training of a small classifier?",
    "warm-up": "Compare batch sizes 16, 64 and 256 on a small classifier",
    "batch size": "Compare weight decay 0, 0.01 and 0.1 on a small classifier",
    "weight decay": "Compare gradient clipping thresholds 0.1, 1 and 5 on a small transformer",
    "gradient clipping": "Compare hidden dimensions 32, 64 and 128 of a small transformer",
    "hidden dimension": "Compare fp32 and bf16 precision on a small transformer",
    "precision": "Does gradient checkpointing save memory on a small transformer?",
    "data parallel": "Compare batch sizes 16, 64 and 256 on a small transformer",
    "gradient checkpointing": "Compare AdamW vs. Lion on a small transformer",
}


def next_goal(study: Study, verdict: str) -> tuple[str, str]:
    """The goal and why. verdict: the word of the computed verdict."""
    names = [arm.name for arm in study.arms]
    if verdict.startswith("inconclusive"):
        if study.factor == "optimizer" and len(names) > 2:
            where = "transformer" if study.harness == "transformer" else "classifier"
            return f"Compare {names[0]} vs. {names[1]} on a small {where}", "Fewer arms leave more time for each pair."
        return study.goal, "The run could not decide; the same question needs more time, or a quieter machine."
    if study.factor == "optimizer" and study.harness == "transformer":
        goal = f"Compare {' vs. '.join(names)} on a small classifier"
        return goal, "What holds on a transformer need not hold on another model and other data."
    return _OTHER_FACTOR[
        study.factor
    ], f"The question of {study.factor} is answered as far as this lab can; this is the next."
