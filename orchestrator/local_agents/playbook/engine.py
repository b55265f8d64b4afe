"""The playbook as an engine of the local server: every answer is derived from the goal that stands in the prompt."""

import contextlib
import json
import re

from orchestrator.goal import same_goal
from orchestrator.local_agents.engine import Answered, Choice, CodeAnswer
from orchestrator.local_agents.playbook.earlier import from_earlier
from orchestrator.local_agents.playbook.following import next_goal
from orchestrator.local_agents.playbook.goals import read_goal
from orchestrator.local_agents.playbook.study import Study, UnknownGoal
from orchestrator.local_agents.playbook.writing import write_experiment, write_tuning

_GOAL = re.compile(r"^Goal:[ \t]*(.+)$", re.MULTILINE)
_GPUS = re.compile(r"^Limits: .*?\b(\d{1,3}) GPUs\b", re.MULTILINE)  # as the prompts of a sprint say it
_TASK = re.compile(r"^Task:[ \t]*(\w+)$", re.MULTILINE)


class PlaybookEngine:
    """Answers for the four roles and writes the code. Raises UnknownGoal where it cannot read the goal."""

    name = "playbook"

    def respond(self, agent_name: str, agent_prompt: str, user_prompt: str, account: str) -> Answered[str]:
        """A role's view of the study, the plan, a comment on the verdict, or what it thinks of a repair.

        The prompt's `Task:` line says which.
        """
        task = _TASK.search(user_prompt)
        match task[1] if task else "":
            case "validate":
                return Answered(_comment(user_prompt))
            case "diagnose":
                return Answered("The playbook wrote this experiment and can tell no more than the output says.")
            case "vote":
                return Answered("Vote: no\nThe playbook would write the same experiment again.")
            case "plan":
                return Answered(_plan(_study_of(user_prompt)))
        study = _study_of(user_prompt)
        return Answered(_views(study).get(agent_name, _plan(study)))

    def code(self, prompt: str, account: str) -> Answered[CodeAnswer]:
        """The study's experiment; for a sweep, one training that can be tuned."""
        task = _TASK.search(prompt)
        if task and task[1] == "sweep":
            return Answered(CodeAnswer(code=write_tuning(_goal_of(prompt)), explanation="One training, for a search."))
        study = _study_of(prompt)
        answer = CodeAnswer(
            code=write_experiment(study),
            explanation=f"Compares {study.arm_names} ({study.factor}) by {study.primary}, paired over {study.seeds} seeds. "
            f"{study.threat} {study.earlier}".strip(),
            bestPractices=[
                "one factor varies, everything else is shared",
                "the same seed gives every arm the same initial weights and data order",
                "tuning uses other seeds than the comparison",
                "the length is measured and fitted to the time limit",
            ],
            usage="Run it in the sandbox; lab.compare records every training, results.json keeps the outcome.",
        )
        return Answered(answer)

    def route(self, prompt: str, account: str) -> Answered[Choice]:
        """The playbook has one system agent."""
        study = _study_of(prompt)
        return Answered(Choice("code", f"an experiment on {study.factor} is written as code", 1.0))


def _study_of(prompt: str) -> Study:
    gpus = _GPUS.search(prompt)
    return from_earlier(read_goal(_goal_of(prompt), int(gpus[1]) if gpus else 0), prompt)


def _goal_of(prompt: str) -> str:
    found = _GOAL.search(prompt)
    return found[1] if found else prompt


def _views(study: Study) -> dict[str, str]:
    tuned = ", ".join(study.tune) or "nothing"
    data = "characters of English prose" if study.harness == "transformer" else "handwritten digits (8x8)"
    model = "a two-layer causal transformer" if study.harness == "transformer" else "a small perceptron"
    named = study.arms[0].settings.get("optimizer") if study.factor != "optimizer" else None
    model += f" by {named}" if named else ""
    return {
        "ResearcherAgent": f"The factor is {study.factor}, with the arms {study.arm_names}; {study.arms[0].name} is the "
        f"baseline. {study.expectation} What decides is {study.primary} at the end of training.",
        "ArchitectAgent": f"Train {model} on {data}. Vary only {study.factor}; share everything else. Tune {tuned} for each "
        f"arm on a seed of its own, then run {study.seeds} seeds, all arms under each.",
        "CoderAgent": "Measure the time of a step first and fit the number of steps to lab.time_left(), so that every arm "
        "gets the same training and the study ends in time. Draw the data order from its own generator: it must not "
        "depend on how many weights were initialised before.",
        "ValidatorAgent": f"{study.threat} With fewer than six complete pairs the exact test cannot reach 0.05, and the "
        "verdict must say so. A best value at the edge of its grid leaves the order open.",
    }


def _plan(study: Study) -> str:
    steps = [
        f"Question: does {study.factor} change {study.primary}? Arms: {study.arm_names}; baseline: {study.arms[0].name}.",
        "Measure the time of a training step on every arm, and fit the length of all trainings to the time left.",
    ]
    for parameter, values in study.tune.items():
        shown = values if isinstance(values, list) else next(iter(values.values()))
        steps.append(f"Tune {parameter} for each arm over {len(shown)} values on a seed that is not used again.")
    steps += [
        f"Run every arm under {study.seeds} seeds, paired: same initial weights, same data order.",
        "Decide by the paired difference: 95 % t interval and exact sign-flip test, Holm-corrected over arms; "
        "runs that fail or diverge stay in the count.",
        study.threat,
        *([study.earlier] if study.earlier else []),
    ]
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))


def _comment(prompt: str) -> str:
    """Words for the computed verdict; the numbers stay the platform's."""
    verdict = re.search(r"^Verdict:[ \t]*(.+)$", prompt, re.MULTILINE)
    numbers = re.search(r"^Numbers:[ \t]*(\{.*\})$", prompt, re.MULTILINE)
    analysis = json.loads(numbers[1]) if numbers else {}
    outcome = re.search(r"^Outcome:[ \t]*([a-z_]+)", prompt, re.MULTILINE)
    completed = outcome is None or outcome[1] == "completed"
    found = [verdict[1] if verdict else "No verdict was computed."]
    for warning in analysis.get("warnings", []):
        found.append(f"Note: {warning}.")
    word = str(analysis.get("verdict", {}).get("word", ""))
    found.append(_ADVICE.get(word, "") if completed else _NOT_COMPLETED)
    if completed and word in _ADVICE:
        with contextlib.suppress(UnknownGoal):  # the code may be another's, for a goal that the playbook cannot read
            asked = _goal_of(prompt)
            goal, why = next_goal(read_goal(asked, _MANY), word)  # it has run already
            found += [f"Next goal: {goal}", f"Why: {why}"] if not same_goal(goal, asked) else []
    return "\n".join(line for line in found if line)


_MANY = 64  # GPUs: nothing is refused for want of them
_NOT_COMPLETED = "Nothing should be concluded from a run that did not complete."
_ADVICE = {
    "better": "This holds for this model, this data and this length of training; the next step is to see whether it "
    "holds at another scale.",
    "no detectable difference": "An effect smaller than the interval cannot be excluded; more seeds or longer "
    "training would narrow it.",
    "inconclusive": "Nothing should be concluded from this run alone: give it more time, or fewer arms.",
    "not a comparison": "To compare, run the arms under several seeds with lab.compare.",
}
