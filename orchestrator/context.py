"""What all parts of a sprint share: who is asked, where it is recorded, who is told."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from executor.experiment import Execution, Experiment, Sink
from orchestrator.agents.answers import Code
from orchestrator.agents.client import LumenbridgeClient
from orchestrator.agents.errors import AgentError, AgentRefused
from orchestrator.background import in_background
from orchestrator.journal import Journal
from results.store import RunFolder
from sandbox_images.lock import Flavour

CALLS = "agents.jsonl"


class Progress(Protocol):
    """Told what goes on; a command line renders it."""

    def phase(self, name: str, seconds: float) -> None:
        """A phase begins, with its budget."""

    def said(self, agent: str, text: str) -> None:
        """An agent answered."""

    def note(self, text: str) -> None:
        """Anything else worth a line."""


class Silent:
    """Progress that nobody watches."""

    def phase(self, name: str, seconds: float) -> None: ...

    def said(self, agent: str, text: str) -> None: ...

    def note(self, text: str) -> None: ...


RunExperiment = Callable[[Experiment, Sink, float], Execution]
"""Runs an experiment for at most so many seconds."""


@dataclass(frozen=True)
class Terms:
    """Under which experiments run: in words for the agents, the seconds that one may take, and the packages inside."""

    facts: str
    wall: float
    flavour: Flavour


class Context:
    """A sprint's collaborators. Every question asked through it is a step of the journal, and on record in full."""

    def __init__(
        self,
        client: LumenbridgeClient,
        run_experiment: RunExperiment,
        folder: RunFolder,
        journal: Journal,
        terms: Terms,
        progress: Progress,
        account: str,
    ) -> None:
        self._client = client.for_sprint(account, self._record)
        self.run_experiment = run_experiment
        self.folder = folder
        self.journal = journal
        self.terms = terms
        self.progress = progress
        self.agents = client.name

    def ask(self, step: str, agent: str, prompt: str, deadline: float) -> str:
        """What an agent says. Raises AgentError, again when the sprint is resumed."""
        return self.journal.step(step, lambda: self._client.invoke(agent, prompt, deadline))

    def ask_code(self, step: str, prompt: str, deadline: float, *, final: bool) -> Code:
        """Code. Raises AgentError; a `final` one is not kept."""
        work = lambda: self._client.code(prompt, deadline).model_dump(by_alias=True)  # noqa: E731
        return Code.model_validate(self.journal.step(step, work, final=final))

    def heard(self, agent: str, ask: Callable[[], str]) -> tuple[str, str]:
        """An answer and why there is none, one of them empty; whoever watches is told."""
        try:
            text = ask()
        except AgentError as error:
            self.progress.note(str(error))
            return "", str(error)
        self.progress.said(agent, text)
        return text, ""

    def ask_all(self, questions: dict[str, tuple[str, str]], deadline: float) -> list[tuple[str, str]]:
        """The answers to several questions (agent and prompt, by step) at once, in their order; as `heard` gives them."""
        asked = [
            (agent, in_background(self.ask, step, agent, prompt, deadline))
            for step, (agent, prompt) in questions.items()
        ]
        refused: list[str] = []
        found = [self._heard_or_refused(agent, answer.result, refused) for agent, answer in asked]
        if len(refused) == len(found) > 1 and len({text.partition(": ")[2] for text in refused}) == 1:
            self.progress.note("nobody in the team can answer this goal")  # why is the code's to say, once
        else:
            for text in refused:
                self.progress.note(text)
        return found

    def _heard_or_refused(self, agent: str, ask: Callable[[], str], refused: list[str]) -> tuple[str, str]:
        """As `heard`; what is refused is told later, in case that all say the same."""
        try:
            text = ask()
        except AgentRefused as error:
            refused.append(str(error))
            return "", str(error)
        except AgentError as error:
            self.progress.note(str(error))
            return "", str(error)
        self.progress.said(agent, text)
        return text, ""

    def _record(self, call: dict[str, Any]) -> None:
        self.folder.append_json(CALLS, call)
        signature = call.get("signature") or {}
        if pinned := signature.get("pinned_key"):
            key = signature["public_key"]
            self.progress.note(f"the key that signs for {call['agent']} has changed: it was {pinned}, and is {key}")
        if signature.get("grade") == "invalid":
            self.progress.note(f"{call['agent']}: the answer's signature is not valid")
