"""Registered agents in SQLite, users apart from each other; and how often each signing key was used."""

import sqlite3
import threading
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter

_METADATA: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS agents (
    user_id TEXT NOT NULL, normalized_name TEXT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL,
    prompt TEXT NOT NULL, metadata TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
    PRIMARY KEY (user_id, normalized_name)
);
CREATE TABLE IF NOT EXISTS requests (public_key TEXT PRIMARY KEY, count INTEGER NOT NULL);
"""
_FIELDS = "user_id, name, normalized_name, description, prompt, metadata, created_at, updated_at"


class StoredAgent(BaseModel):
    """One agent, with the wire's field names."""

    model_config = ConfigDict(frozen=True)

    userId: str
    name: str
    normalizedName: str
    description: str
    prompt: str
    metadata: JsonValue
    createdAt: str
    updatedAt: str
    type: str = "user-created"


class AgentExists(ValueError):
    """The name is taken."""


class AgentUnknown(LookupError):
    """There is no such agent of this user."""


class AgentStore:
    """All agents of all users in one file; ":memory:" for none. Safe to use from several threads."""

    def __init__(self, path: Path | str) -> None:
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
        self._database.executescript(_SCHEMA)

    def add(self, user: str, name: str, prompt: str, description: str, metadata: JsonValue) -> StoredAgent:
        """Registers an agent. Raises AgentExists."""
        now = _now()
        row = (user, name, _normalized(name), description, prompt, _METADATA.dump_json(metadata).decode(), now, now)
        with self._lock:
            try:
                self._database.execute(f"INSERT INTO agents ({_FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError:
                raise AgentExists(f"an agent named {name!r} exists already for this user") from None
        return self.get(user, name)

    def get(self, user: str, name: str) -> StoredAgent:
        """One agent of a user. Raises AgentUnknown."""
        where = "WHERE user_id = ? AND normalized_name = ?"
        with self._lock:
            row = self._database.execute(f"SELECT {_FIELDS} FROM agents {where}", (user, _normalized(name))).fetchone()
        if row is None:
            raise AgentUnknown(f"there is no agent named {name!r}")
        return _agent(row)

    def of_user(self, user: str) -> list[StoredAgent]:
        """Every agent of a user, by name."""
        query = f"SELECT {_FIELDS} FROM agents WHERE user_id = ? ORDER BY normalized_name"
        with self._lock:
            return [_agent(row) for row in self._database.execute(query, (user,)).fetchall()]

    def update(self, user: str, name: str, changes: dict[str, JsonValue]) -> StoredAgent:
        """Changes description, prompt or metadata. Raises AgentUnknown."""
        agent = self.get(user, name)
        new = agent.model_copy(update=changes)
        values = (new.description, new.prompt, _METADATA.dump_json(new.metadata).decode(), _now())
        with self._lock:
            self._database.execute(
                "UPDATE agents SET description = ?, prompt = ?, metadata = ?, updated_at = ? "
                "WHERE user_id = ? AND normalized_name = ?",
                (*values, user, agent.normalizedName),
            )
        return self.get(user, name)

    def remove(self, user: str, name: str) -> None:
        """Removes an agent of a user. Raises AgentUnknown."""
        agent = self.get(user, name)
        with self._lock:
            self._database.execute(
                "DELETE FROM agents WHERE user_id = ? AND normalized_name = ?", (user, agent.normalizedName)
            )

    def count_request(self, public_key: str) -> None:
        """Adds one to a key's signed requests."""
        with self._lock:
            self._database.execute(
                "INSERT INTO requests VALUES (?, 1) ON CONFLICT (public_key) DO UPDATE SET count = count + 1",
                (public_key,),
            )

    def requests_of(self, public_key: str) -> int | None:
        """How many requests a key has signed; None if none."""
        query = "SELECT count FROM requests WHERE public_key = ?"
        with self._lock:
            row = self._database.execute(query, (public_key.lower(),)).fetchone()
        return int(row[0]) if row else None

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._database.close()


def _agent(row: tuple[str, ...]) -> StoredAgent:
    user, name, normalized, description, prompt, metadata, created, updated = row
    return StoredAgent(
        userId=user, name=name, normalizedName=normalized, description=description, prompt=prompt,
        metadata=_METADATA.validate_json(metadata), createdAt=created, updatedAt=updated,
    )  # fmt: skip


def _normalized(name: str) -> str:
    return name.strip().casefold()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
