"""Settings from the environment and from a .env file in the working directory; the environment wins."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dotenv import dotenv_values

DEFAULT_USER = "ai-research-lab"


@dataclass(frozen=True)
class Settings:
    """What the agents need to know of the world."""

    lumenbridge_url: str | None
    user_id: str

    @classmethod
    def read(cls, warn: Callable[[str], None] = lambda text: None, folder: Path | None = None) -> Self:
        """Reads the environment and `folder`/.env; nothing is put into the process's own environment."""
        file = (folder or Path.cwd()) / ".env"
        values = dotenv_values(file, interpolate=False) if file.is_file() else {}
        if "SUDO_PASSWORD" in values:
            warn(f"SUDO_PASSWORD in {file.name} is ignored: nothing here needs it, and it should not be kept in a file")

        def setting(name: str) -> str | None:
            return (os.environ.get(name) or values.get(name) or "").strip() or None

        return cls(setting("LUMENBRIDGE_BASE_URL"), setting("AI_RESEARCH_USER_ID") or DEFAULT_USER)
