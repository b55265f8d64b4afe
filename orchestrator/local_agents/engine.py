"""What stands behind the local server and answers."""

from typing import Protocol

from pydantic import BaseModel, ConfigDict


class CodeAnswer(BaseModel):
    """An answer of the code agent, with the wire's field names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str
    language: str = "python"
    explanation: str = ""
    bestPractices: list[str] = []
    dependencies: list[str] = []
    usage: str = ""
    tests: str = ""


class Engine(Protocol):
    """Answers prompts. A ValueError is a refusal, told to the caller in its words; anything else is a failure."""

    name: str

    def respond(self, agent_name: str, agent_prompt: str, user_prompt: str) -> str:
        """What the agent with that prompt says to the user's."""

    def code(self, prompt: str) -> CodeAnswer:
        """Code for a prompt."""

    def route(self, prompt: str) -> tuple[str, str, float]:
        """The agent to ask (search, terminal, code or schema), why, and how sure (0 to 1)."""
