"""Settings from the environment and from a .env file in the working directory; the environment wins."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dotenv import dotenv_values
from pydantic import SecretStr

from orchestrator.errors import UsageProblem

DEFAULT_USER = "ai-research-lab"


@dataclass(frozen=True)
class ModelSettings:
    """A model behind an OpenAI-compatible chat endpoint, and what a sprint may spend on it."""

    base_url: str
    model: str
    api_key: SecretStr | None = None
    max_tokens: int = 400_000
    """Prompt and completion together, in one sprint."""
    max_cost: float | None = None
    """In one sprint, in the currency of the prices; None: only the tokens count."""
    prompt_price: float = 0.0
    """For a million tokens of prompts."""
    completion_price: float = 0.0
    """For a million tokens of answers."""


@dataclass(frozen=True)
class Settings:
    """What the agents need to know of the world. Secrets do not show in its `repr`."""

    lumenbridge_url: str | None
    user_id: str
    private_key: SecretStr | None = None
    mnemonic: SecretStr | None = None
    llm: ModelSettings | None = None

    @classmethod
    def read(cls, warn: Callable[[str], None] = lambda text: None, folder: Path | None = None) -> Self:
        """Reads the environment and `folder`/.env; nothing is put into the process's own environment.

        Raises UsageProblem for what should be a number and is not.
        """
        file = (folder or Path.cwd()) / ".env"
        try:
            values = dotenv_values(file, interpolate=False) if file.is_file() else {}
        except (UnicodeDecodeError, OSError) as error:
            raise UsageProblem(f"cannot read {file}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
        if "SUDO_PASSWORD" in values:
            warn(f"SUDO_PASSWORD in {file.name} is ignored: nothing here needs it, and it should not be kept in a file")

        def setting(name: str) -> str | None:
            return (os.environ.get(name) or values.get(name) or "").strip() or None

        return cls(
            setting("LUMENBRIDGE_BASE_URL"),
            setting("AI_RESEARCH_USER_ID") or DEFAULT_USER,
            _secret(setting("LUMENBRIDGE_PRIVATE_KEY")),
            _secret(setting("LUMENBRIDGE_MNEMONIC")),
            _model(setting),
        )


def _secret(text: str | None) -> SecretStr | None:
    return SecretStr(text) if text else None


def _model(setting: Callable[[str], str | None]) -> ModelSettings | None:
    base_url = setting("LABSANDBOX_LLM_BASE_URL")
    if base_url is None:
        return None
    model = setting("LABSANDBOX_LLM_MODEL")
    if model is None:
        raise UsageProblem("LABSANDBOX_LLM_BASE_URL is set, but LABSANDBOX_LLM_MODEL is not: which model is to answer?")

    def amount(name: str) -> float | None:
        text = setting(name)
        try:
            value = None if text is None else float(text)
        except ValueError:
            value = math.nan
        if value is not None and not 0 <= value < math.inf:
            raise UsageProblem(f"{name} must be a number of at least 0")
        return value

    tokens = amount("LABSANDBOX_LLM_MAX_TOKENS")
    return ModelSettings(
        base_url,
        model,
        _secret(setting("LABSANDBOX_LLM_API_KEY")),
        ModelSettings.max_tokens if tokens is None else int(tokens),
        amount("LABSANDBOX_LLM_MAX_COST"),
        amount("LABSANDBOX_LLM_PROMPT_PRICE") or 0.0,
        amount("LABSANDBOX_LLM_COMPLETION_PRICE") or 0.0,
    )
