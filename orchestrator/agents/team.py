"""Who is on the team, what each is told, and how the team is registered."""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from orchestrator.agents.client import LumenbridgeClient
from orchestrator.agents.errors import AgentRefused
from policies.decision import Decision
from policies.units import format_bytes, format_seconds
from sandbox_images.lock import Flavour, locked

RESEARCHER, ARCHITECT, CODER, VALIDATOR = "ResearcherAgent", "ArchitectAgent", "CoderAgent", "ValidatorAgent"
DEBUGGER = "DebuggerAgent"

_SANDBOX = """\
Experiments are one Python file, run in a container without a network under a wall-clock limit. PyTorch, NumPy,
scikit-learn and matplotlib are installed; nothing can be downloaded, so data sets and weights from the internet are not
available. The library `lab` is: lab.text() gives English prose, lab.digits() gives 1797 handwritten digits as
(images, labels), lab.log(step=..., loss=...) records metrics, lab.time_left() gives seconds, and
lab.compare(train, arms, seeds, tune=None, primary="test_loss", select="val_loss", lower_is_better=True, unit=None) calls
train(arm, seed, **tuned) for every arm under every seed, seeded alike, and records each run; train returns a dict with the
primary metric and the one that tuning selects by; unit="nats" where the primary is a mean cross-entropy; deterministic=True
where the primary is a count that no seed changes. An experiment calls lab.compare once, with all arms. A study that does
not fit into one container goes on in further ones: lab.keep(name, value) keeps sizes that were fitted to measured time,
and lab.fit_steps(seconds_per_step, trainings) does so by itself.
lab.device() is the torch.device to use: a GPU where one was given. lab.launch(fn, *args) runs a top-level function in one
process for each GPU, inside torch.distributed, and returns what it returns in rank 0.
The verdict is computed from what lab.compare recorded. Files left in /workspace/out come back."""


@dataclass(frozen=True)
class Role:
    """One member of the team."""

    name: str
    description: str
    prompt: str


TEAM = (
    Role(
        RESEARCHER,
        "States the hypothesis and what is already known",
        "You are the researcher of a small machine-learning lab. For a goal, say in under 200 words: the hypothesis, what "
        "the literature leads you to expect and how sure that is, the one factor to vary, and the metric that decides. "
        "Do not write code. Do not claim results.\n\n" + _SANDBOX,
    ),
    Role(
        ARCHITECT,
        "Designs the experiment and writes the plan",
        "You are the architect of a small machine-learning lab. For a goal, design one controlled comparison that fits the "
        "time limit on the given hardware: data, model, arms with the baseline first, what is shared, what is tuned for each "
        "arm and over which values, seeds, primary metric. Prefer small models and at least eight seeds to one large run. "
        "Asked for a plan, weigh the others' contributions and answer with numbered steps.\n\n" + _SANDBOX,
    ),
    Role(
        CODER,
        "Says how the experiment is best written",
        "You are the programmer of a small machine-learning lab. Say briefly how the experiment is to be written: structure, "
        "how its length is fitted to lab.time_left(), pitfalls. Asked for code, answer with one complete Python file that "
        "uses lab.compare, sets torch.set_num_threads(lab.cpus()), and downloads nothing.\n\n" + _SANDBOX,
    ),
    Role(
        VALIDATOR,
        "Judges what may be concluded",
        "You are the validator of a small machine-learning lab. Before a run, name the threats to a fair comparison and how "
        "to meet them. After a run you are given the verdict and the numbers that the platform computed: explain them in "
        "plain words, say what they do not show. Never contradict the verdict and never state a number that you were not "
        'given. End with two lines, "Next goal: …" with the one experiment that would teach most now, as a goal for the '
        'lab in one sentence, and "Why: …".\n\n' + _SANDBOX,
    ),
)
"""Those who discuss a goal."""

REPAIRER = Role(
    DEBUGGER,
    "Finds out why an experiment failed",
    "You are the debugger of a small machine-learning lab. An experiment failed: you are given how it ended, the end of its "
    "output, and the lines at fault. Say in under 150 words what the cause is and what the smallest change is that mends "
    "it. If the cause lies in the design, say so. Do not write the whole program, and never propose to weaken a limit.\n\n"
    + _SANDBOX,
)
EVERYBODY = (*TEAM, REPAIRER)

Done = Literal["registered", "updated", "unchanged", "taken"]


SETUP_SECONDS = 60.0
"""How long setting up may take in all."""
_TOLD = ("torch", "torchvision", "numpy", "scikit-learn", "matplotlib")
"""The packages whose versions prompts tell."""


def setup_team(client: LumenbridgeClient, roles: Iterable[Role] = EVERYBODY) -> dict[str, Done]:
    """Makes sure that every role is registered with its current prompt; what was done for each.

    "taken": the service keeps the name for an agent that is not this user's. May be called any number of times. Raises
    AgentError.
    """
    deadline = time.monotonic() + SETUP_SECONDS
    present = _registered(client, deadline)
    return {role.name: _set_up(client, role, role.name in present, deadline) for role in roles}


_NAME_EXISTS = re.compile(r"\b(exists|taken|in use|system agent|reserved)\b", re.IGNORECASE)


def _registered(client: LumenbridgeClient, deadline: float) -> set[str]:
    return {agent.name for agent in client.my_agents(deadline)}


def _set_up(client: LumenbridgeClient, role: Role, present: bool, deadline: float) -> Done:
    if not present:
        try:
            client.register(role.name, role.prompt, role.description, deadline)
            return "registered"
        except AgentRefused as refused:
            if role.name not in _registered(client, deadline):
                if _NAME_EXISTS.search(refused.said):
                    return "taken"
                raise
            # Another run registered it since the agents were listed.
    try:
        there = client.my_agent(role.name, deadline)
    except AgentRefused:
        there = None  # listed, but not shown: updating it is the way to be sure
    if there is not None and there.prompt == role.prompt and there.description == role.description:
        return "unchanged"
    client.update(role.name, role.prompt, role.description, deadline)
    return "updated"


def sandbox_facts(terms: Decision, flavour: Flavour) -> str:
    """What the code will find, for a prompt: limits as they will hold, network and packages."""
    limits, held = terms.limits, locked(flavour)
    packages = ", ".join(f"{name} {held[name]}" for name in _TOLD if name in held)
    network = f"HTTP(S) to {', '.join(terms.network.hosts)} alone" if terms.network.hosts else "no network"
    more = {
        "deny": "Nothing else can be installed.",
        "allowlist": f"These are available as well, when the code imports them: {', '.join(terms.dependencies.names)}.",
        "any": "Other pure or prebuilt packages are there when the code imports them; never call pip.",
    }[terms.dependencies.mode]
    return (
        f"Limits: {format_seconds(limits.wall)} of wall clock, {limits.cpus:g} CPU cores, {format_bytes(limits.memory)} of "
        f"memory, {limits.gpus} GPUs, {network}. Packages: {packages}. {more}\n{_SANDBOX}"
    )
