"""The service's answers: forgiving where its documentation is silent, strict where it would hurt.

Every `parse` function takes any JSON value and gives a model or raises AgentsUnavailable.
"""

import json
import re
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from orchestrator.agents.errors import AgentRefused, AgentsUnavailable
from policies.text import one_line

MAX_TEXT = 200_000
MAX_CODE = 1 << 20


def clean_line(text: object, limit: int = 300) -> str:
    """Somebody else's text as one harmless line of at most `limit` characters."""
    return one_line(str(text)[: 20 * limit], limit)


def _encodable(value: object) -> object:
    """JSON can spell halves of characters, which no file takes."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _as_text(value: object) -> object:
    """Models answer with a string, or with an object that has one in a field of some name."""
    if isinstance(value, dict):
        for key in ("response", "text", "content", "message", "answer", "output"):
            if isinstance(value.get(key), str):
                return value[key]
        return "\n".join(f"{key}: {item}" for key, item in value.items() if not str(key).startswith("_"))
    if isinstance(value, list):
        return "\n".join(str(item) for item in value)
    return value


def _as_list(value: object) -> object:
    if value is None:
        return []
    if isinstance(value, str):
        return [line.strip() for line in value.splitlines() if line.strip()]
    if isinstance(value, list):
        return [item if isinstance(item, str) else str(item) for item in value]
    return value


Encodable = Annotated[str, BeforeValidator(_encodable)]
Text = Annotated[Encodable, BeforeValidator(_as_text), Field(max_length=MAX_TEXT)]
OptionalText = Annotated[Encodable, BeforeValidator(lambda value: "" if value is None else _as_text(value))]
Strings = Annotated[list[Encodable], BeforeValidator(_as_list), Field(max_length=200)]


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Reply(Answer):
    """What an invoked agent said."""

    response: Annotated[Text, Field(min_length=1)]


class Code(Answer):
    """A code agent's answer; everything but the code may be missing."""

    code: Annotated[Encodable, Field(min_length=1, max_length=MAX_CODE)]
    language: OptionalText = "python"
    explanation: OptionalText = ""
    best_practices: Annotated[Strings, Field(alias="bestPractices")] = []
    dependencies: Strings = []
    usage: OptionalText = ""
    tests: OptionalText = ""


class Agent(Answer):
    """A registered agent; a list of agents leaves the prompt out."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    description: OptionalText = ""
    prompt: str | None = None


class AgentList(Answer):
    """The agents of a user."""

    agents: list[Agent]


class OneAgent(Answer):
    """One agent."""

    agent: Agent


class Routing(Answer):
    """Which agent the router chose, and why."""

    selected_agent: Annotated[str, Field(alias="selectedAgent", max_length=100)]
    reasoning: OptionalText = ""
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None


class Routed(Answer):
    """The router's answer with the chosen agent's."""

    routing: Routing
    result: Any = None


class Challenge(Answer):
    """What is to be signed."""

    challenge: Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[0-9A-Za-z._:+/=-]+$")]


class Account(Answer):
    """The use that a key's owner has made of the service, and may make."""

    tier: OptionalText = ""
    request_limit: Annotated[int | None, Field(alias="requestLimit")] = None
    request_count: Annotated[int | None, Field(alias="requestCount")] = None
    requests_remaining: Annotated[int | None, Field(alias="requestsRemaining")] = None


class Stats(Answer):
    """An account."""

    stats: Account


class _Usage(Answer):
    promptTokens: int | None = None
    completionTokens: int | None = None
    totalTokens: int | None = None


class _Llm(Answer):
    provider: OptionalText = ""
    model: OptionalText = ""
    usage: _Usage | None = None


_Model = TypeVar("_Model", bound=Answer)


def parse(payload: object, model: type[_Model], what: str) -> _Model:
    """Reads the envelope: `result`, or `result.data`, or the fields at the top. Raises AgentError."""
    if not isinstance(payload, dict):
        raise AgentsUnavailable(f"{what}: the answer is no JSON object")
    if payload.get("success") is False or ("error" in payload and "result" not in payload):
        said = clean_line(payload.get("error") or payload.get("message") or "no reason given")
        raise AgentRefused(f"{what}: {said}", said)
    problem = ""
    for candidate in _candidates(payload):
        try:
            return model.model_validate(candidate)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            problem = problem or clean_line(f"{where}: {first['msg']}")
        except RecursionError:
            problem = "nested too deeply"
    raise AgentsUnavailable(f"{what}: the answer cannot be used ({problem})")


def _candidates(payload: dict[str, Any]) -> list[object]:
    result = payload.get("result")
    found: list[object] = []
    if isinstance(result, dict):
        data = result.get("data")
        found += [data] if isinstance(data, dict) else []
        found.append(result)
    elif isinstance(result, str):
        found.append({"response": result, "code": result})
    return [*found, payload]


def signed_result(payload: object) -> dict[str, Any]:
    """The object that an answer's `_signature` stands in and is about: the result, or its `data`; {} if it has none."""
    result = payload.get("result") if isinstance(payload, dict) else None
    if not isinstance(result, dict):
        return {}
    data = result.get("data")
    return data if isinstance(data, dict) and "_signature" in data and "_signature" not in result else result


def llm_of(result: dict[str, Any]) -> dict[str, Any]:
    """Which model answered and for how many tokens, as far as the answer says so in a way that can be read."""
    data = result.get("data")
    said = result.get("_llm") or (data.get("_llm") if isinstance(data, dict) else None) or {}
    try:
        llm = _Llm.model_validate(said)
    except (ValidationError, RecursionError):
        llm = _Llm()
    usage = llm.usage or _Usage()
    tokens = {"prompt": usage.promptTokens, "completion": usage.completionTokens, "total": usage.totalTokens}
    return {"provider": clean_line(llm.provider) or None, "model": clean_line(llm.model) or None, "tokens": tokens}


_FENCE = re.compile(r"```[^`\n]*\n(.*?)```", re.DOTALL)


_OPENED = re.compile(r"^[ \t]{0,3}```[^`\n]*\n", re.MULTILINE)


def strip_fences(code: str) -> str:
    """The code without Markdown: the longest fenced block where there is one, else the text as it is.

    A fence that is never closed (an answer that was cut short) counts to the end.
    """
    blocks = _FENCE.findall(code)
    if blocks:
        code = max(blocks, key=len)
    elif opened := _OPENED.search(code):
        code = code[opened.end() :]
    return code.strip("\r\n") + "\n"


_MAX_STARTS = 100


def json_object(text: str) -> dict[str, Any] | None:
    """The first JSON object in a text, with whatever stands around it."""
    decoder = json.JSONDecoder(strict=False)
    start = -1
    for _ in range(_MAX_STARTS):
        start = text.find("{", start + 1)
        if start < 0:
            return None
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        return found if isinstance(found, dict) else None
    return None
