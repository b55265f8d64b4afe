"""One chat completion of an OpenAI-compatible endpoint, as plain text or as JSON of a given shape.

Endpoints differ in what they take. Whatever one refuses by name (a shape for the answer, the older or newer word for
its length) is left out of this and all later calls.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from orchestrator.agents.errors import AgentRefused, AgentsUnavailable
from orchestrator.agents.transport import Transport
from orchestrator.local_agents.engine import Usage
from orchestrator.settings import ModelSettings


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


def _text_of(content: object) -> object:
    """Some endpoints answer with a list of parts, of which the texts count."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content


class _Message(_Wire):
    content: Annotated[str | None, BeforeValidator(_text_of)] = None


class _Choice(_Wire):
    message: _Message
    finish_reason: str | None = None


class _Usage(_Wire):
    prompt_tokens: int = Field(ge=0, le=10**9)
    completion_tokens: int = Field(ge=0, le=10**9)


def _usage_of(said: object) -> object:
    """What cannot be read as a count is as if it had not been said."""
    try:
        return _Usage.model_validate(said)
    except ValidationError:
        return None


class _Completion(_Wire):
    choices: list[_Choice] = Field(min_length=1)
    model: str | None = None
    usage: Annotated[_Usage | None, BeforeValidator(_usage_of)] = None


@dataclass(frozen=True)
class Completion:
    """What the model said."""

    text: str
    """Without the thoughts before it."""
    length: int
    """Bytes of the answer with its thoughts."""
    whole: bool
    """It was not cut off at the limit of tokens."""
    model: str
    usage: Usage | None


class Chat:
    """A model. Safe to use from several threads. Raises AgentError."""

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        # The caller of the local server repeats what failed for a passing reason; twice would be too often.
        self._transport = Transport(settings.base_url, "LABSANDBOX_LLM_BASE_URL", attempts=1)
        self._length_word = "max_tokens"
        self._takes_shapes = True

    def complete(
        self, system: str, user: str, max_tokens: int, deadline: float, shape: dict[str, Any] | None = None
    ) -> Completion:
        """The answer to a conversation of two messages. shape: a JSON schema, of which the caller cannot be certain."""
        for _ in range(3):
            shaped = shape if self._takes_shapes else None
            body = self._body(system, user, max_tokens, shaped)
            try:
                payload = self._transport.call("POST", "/chat/completions", body, deadline, self._headers)
            except AgentRefused as refused:
                if not self._adapts(refused, shaped is not None):
                    raise
                continue
            return self._read(payload)
        raise AgentRefused("the model's endpoint accepts no form of the request")

    def _body(self, system: str, user: str, max_tokens: int, shape: dict[str, Any] | None) -> dict[str, Any]:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        body: dict[str, Any] = {"model": self._settings.model, "messages": messages, self._length_word: max_tokens}
        if shape is not None:
            schema = {"name": "answer", "strict": True, "schema": shape}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _headers(self, deadline: float) -> dict[str, str]:
        key = self._settings.api_key
        return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}

    def _adapts(self, refused: AgentRefused, shaped: bool) -> bool:
        """Whether something can be left out that the endpoint may have refused: what it names, else the shape."""
        if "max_completion_tokens" in refused.said and self._length_word == "max_tokens":
            self._length_word = "max_completion_tokens"
            return True
        if shaped:
            self._takes_shapes = False
        return shaped

    def _read(self, payload: object) -> Completion:
        try:
            answer = _Completion.model_validate(payload)
        except (ValidationError, RecursionError):
            raise AgentsUnavailable("the model's endpoint did not answer with a chat completion") from None
        choice = answer.choices[0]
        usage = Usage(answer.usage.prompt_tokens, answer.usage.completion_tokens) if answer.usage else None
        said = choice.message.content or ""
        length = len(said.encode("utf-8", "replace"))
        return Completion(
            without_thoughts(said),
            length,
            choice.finish_reason != "length",
            answer.model or self._settings.model,
            usage,
        )


def without_thoughts(text: str) -> str:
    """What a model says after thinking aloud, which some endpoints put at the beginning of the answer."""
    head, mark, rest = text.partition("</think>")
    return rest.strip() if mark and head.lstrip().startswith("<think>") else text.strip()
