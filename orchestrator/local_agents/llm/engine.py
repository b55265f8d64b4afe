"""The engine `llm`: every agent is the model with the agent's prompt; code comes as JSON, or as it comes."""

import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.agents.answers import json_object, strip_fences
from orchestrator.agents.errors import AgentRefused, AgentsUnavailable
from orchestrator.local_agents.engine import Answered, Choice, CodeAnswer, EngineUnavailable, Usage
from orchestrator.local_agents.llm.budget import Budget
from orchestrator.local_agents.llm.chat import Chat, Completion
from orchestrator.settings import ModelSettings

_SECONDS = 300.0
"""How long one answer may take; the callers have deadlines of their own."""
_WORDS, _CODE = 2_000, 12_000
"""Tokens of an answer in prose, and of one with code."""
_TEXT = {"type": "string"}
_CODE_SHAPE: dict[str, Any] = {
    "type": "object",
    "properties": {"code": _TEXT, "explanation": _TEXT, "dependencies": {"type": "array", "items": _TEXT}},
    "required": ["code", "explanation", "dependencies"],
    "additionalProperties": False,
}
_CODE_SYSTEM = (
    "You write one complete Python program for what the user asks. Answer with a JSON object and nothing else: "
    '"code" (the program), "explanation" (two sentences), "dependencies" (names of the packages on PyPI that it imports).'
)
_CHOICE_SHAPE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "selectedAgent": {"type": "string", "enum": ["search", "terminal", "code", "schema"]},
        "reasoning": _TEXT,
        "confidence": {"type": "number"},
    },
    "required": ["selectedAgent", "reasoning", "confidence"],
    "additionalProperties": False,
}
_CHOICE_SYSTEM = (
    "You choose who answers a request: search (facts from the web), terminal (a shell command), code (a program), schema "
    '(a data structure). Answer with a JSON object and nothing else: "selectedAgent", "reasoning", "confidence" (0 to 1).'
)


class LlmEngine:
    """Asks one model, within each sprint's budget. Safe to use from several threads."""

    name = "llm"

    def __init__(self, settings: ModelSettings, accounts: Path) -> None:
        """accounts: the SQLite file that keeps what was spent."""
        self._chat = Chat(settings)
        self._budget = Budget(accounts, settings)

    def respond(self, agent_name: str, agent_prompt: str, user_prompt: str, account: str) -> Answered[str]:
        """The model's words."""
        said, usage = self._ask(agent_prompt, user_prompt, _WORDS, account)
        return Answered(said.text, said.model, usage)

    def code(self, prompt: str, account: str) -> Answered[CodeAnswer]:
        """The model's program. One that was cut off is not taken."""
        said, usage = self._ask(_CODE_SYSTEM, prompt, _CODE, account, _CODE_SHAPE)
        if not said.whole:
            raise EngineUnavailable("the model's answer was cut off at its limit of tokens")
        return Answered(_code_of(said.text), said.model, usage)

    def route(self, prompt: str, account: str) -> Answered[Choice]:
        """The model's choice; where it makes none that can be read, code."""
        said, usage = self._ask(_CHOICE_SYSTEM, prompt, _WORDS, account, _CHOICE_SHAPE)
        found = json_object(said.text) or {}
        agent = found.get("selectedAgent")
        if agent not in ("search", "terminal", "code", "schema"):
            return Answered(Choice("code", "the model named no agent", 0.0), said.model, usage)
        sure = found.get("confidence")
        confidence = min(1.0, max(0.0, float(sure))) if isinstance(sure, int | float) else 0.0
        return Answered(Choice(agent, str(found.get("reasoning") or ""), confidence), said.model, usage)

    def _ask(
        self, system: str, user: str, length: int, account: str, shape: dict[str, Any] | None = None
    ) -> tuple[Completion, Usage]:
        reservation = self._budget.reserve(account, estimate(system) + estimate(user), length)
        deadline = time.monotonic() + _SECONDS
        try:
            said = self._chat.complete(system, user, reservation.usage.completion, deadline, shape)
        except AgentRefused as error:
            self._budget.settle(reservation, Usage())
            raise ValueError(f"the model's endpoint refused: {error}") from None
        except AgentsUnavailable as error:
            if error.unheard:  # otherwise it may have been answered, and paid for
                self._budget.settle(reservation, Usage())
            raise EngineUnavailable(f"the model's endpoint: {error}", error.after) from None
        usage = said.usage or Usage(reservation.usage.prompt, said.length // 3 + 16)
        self._budget.settle(reservation, usage)
        if not said.text:
            raise EngineUnavailable("the model said nothing")
        return said, usage


def estimate(text: str) -> int:
    """Tokens that a text has at most, for the usual tokenizers: one for three bytes, and some for the frame."""
    return len(text.encode("utf-8", "replace")) // 3 + 16


def _code_of(text: str) -> CodeAnswer:
    """The program in an answer: JSON of the asked shape, a fenced block, JSON somewhere in prose, or bare code."""
    inside = strip_fences(text)
    fenced = "```" in text and not inside.lstrip().startswith("{")
    found = None if fenced else json_object(inside)  # an object in a fenced program is the program's
    if found is not None and isinstance(found.get("code"), str):
        known = {key: found[key] for key in CodeAnswer.model_fields.keys() & found.keys()}
        try:
            return CodeAnswer.model_validate(known)
        except ValidationError:
            return CodeAnswer(code=found["code"])
    return CodeAnswer(code=inside)
