"""What a sprint is asked to be: enough to carry it out, now or after a crash."""

import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.agents.choice import AgentsChoice
from orchestrator.command import repeating
from orchestrator.errors import UsageProblem
from orchestrator.journal import Journal
from orchestrator.lab_setup import LabOptions

_STEP = "sprint"


class SprintSpec(BaseModel):
    """Goal and options of a sprint; the first step of its journal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    goal: str
    seed: int = 0
    agents: AgentsChoice = "auto"
    require_signed: bool = False
    options: LabOptions = Field(default_factory=LabOptions)
    follows: str | None = None
    recall: bool = True
    """Whether the team is told of earlier sprints."""
    account: str = Field(default_factory=lambda: secrets.token_hex(8))
    """Under which name the agents' engine keeps account of what it spends on this sprint."""

    def command(self, results: Path) -> str:
        """The command line that repeats the sprint."""
        return repeating(self.goal, self.agents, self.options, results, self.seed, self.require_signed, self.recall)


def put_on_record(spec: SprintSpec, journal: Journal) -> None:
    """Makes it the first step of a journal."""
    journal.step(_STEP, lambda: spec.model_dump(mode="json", exclude_none=True))


def recorded_spec(journal: Journal) -> SprintSpec:
    """What a journal began with. Raises UsageProblem where that cannot be carried out."""
    if not journal.done(_STEP):
        raise UsageProblem("the sprint has no journal: it cannot be resumed")
    try:
        return SprintSpec.model_validate(journal.step(_STEP, dict))
    except ValidationError as error:
        raise UsageProblem(f"the sprint's journal cannot be used: {error.errors()[0]['msg']}") from None
