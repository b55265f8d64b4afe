"""What stands behind the local server and answers."""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


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


@dataclass(frozen=True)
class Choice:
    """Which of the system's agents is asked (search, terminal, code or schema), why, and how sure (0 to 1)."""

    agent: str
    reasoning: str
    confidence: float


@dataclass(frozen=True)
class Usage:
    """Tokens of one or several calls of a model."""

    prompt: int = 0
    completion: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt + other.prompt, self.completion + other.completion)


@dataclass(frozen=True)
class Answered(Generic[T]):
    """An answer, and what it took."""

    value: T
    model: str | None = None
    usage: Usage | None = None


class EngineUnavailable(RuntimeError):
    """Not now: the caller may ask again, after as many seconds as `after` says. The text is told to it."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Engine(Protocol):
    """Answers prompts; `account` names whose budget it is charged to.

    A ValueError is a refusal, told to the caller in its words; EngineUnavailable too, but it may ask again; anything
    else is a failure.
    """

    name: str

    def respond(self, agent_name: str, agent_prompt: str, user_prompt: str, account: str) -> Answered[str]:
        """What the agent with that prompt says to the user's."""

    def code(self, prompt: str, account: str) -> Answered[CodeAnswer]:
        """A program for a prompt."""

    def route(self, prompt: str, account: str) -> Answered[Choice]:
        """Which of the system's agents is to answer a prompt."""
