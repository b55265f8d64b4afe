"""What a sprint may spend on a model: reserved before a call, settled after it.

The account stands in SQLite, so that a sprint which is resumed, or whose calls go through several processes, has one
budget. A call that dies in between keeps its reservation: it may have been paid for.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.local_agents.engine import Usage
from orchestrator.settings import ModelSettings

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spending (
    account TEXT PRIMARY KEY, tokens INTEGER NOT NULL DEFAULT 0, cost REAL NOT NULL DEFAULT 0
)
"""
_LEAST_ANSWER = 256
"""Tokens. An answer that must be shorter is not worth asking for."""


class BudgetSpent(ValueError):
    """The account cannot pay for another call."""


@dataclass(frozen=True)
class Reservation:
    """What a call was allowed, and what that was taken to cost."""

    account: str
    usage: Usage
    cost: float


class Budget:
    """The accounts of all sprints that are charged to one model's settings. Many threads and processes may use it."""

    def __init__(self, path: Path, settings: ModelSettings) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        self._settings = settings
        with self._open() as database:
            database.execute(_SCHEMA)

    def reserve(self, account: str, prompt: int, completion: int) -> Reservation:
        """Tokens for a prompt and as many as `completion` for its answer, fewer if the rest does not allow more.

        Raises BudgetSpent when there is not enough left for any answer.
        """
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            tokens, cost = self._spent(database, account)
            left = min(completion, self._settings.max_tokens - tokens - prompt, self._affordable(prompt, cost))
            if left < min(completion, _LEAST_ANSWER):
                raise BudgetSpent(
                    f"the sprint's budget for the model is spent ({tokens:,} of {self._settings.max_tokens:,} tokens"
                    + (f", {cost:.4g} of {self._settings.max_cost:g}" if self._settings.max_cost is not None else "")
                    + ")"
                )
            usage = Usage(prompt, left)
            reservation = Reservation(account, usage, self.cost_of(usage))
            self._add(database, account, prompt + left, reservation.cost)
        return reservation

    def settle(self, reservation: Reservation, used: Usage) -> None:
        """Replaces a reservation by what was used."""
        reserved = reservation.usage
        change = used.prompt + used.completion - reserved.prompt - reserved.completion
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            self._add(database, reservation.account, change, self.cost_of(used) - reservation.cost)

    def cost_of(self, usage: Usage) -> float:
        """By the prices of a million tokens."""
        settings = self._settings
        return (usage.prompt * settings.prompt_price + usage.completion * settings.completion_price) / 1e6

    def _affordable(self, prompt: int, cost: float) -> int:
        """Tokens of an answer that the rest of the money pays for."""
        settings = self._settings
        if settings.max_cost is None:
            return settings.max_tokens
        left = settings.max_cost - cost - self.cost_of(Usage(prompt, 0))
        if left < 0:
            return 0
        return int(left * 1e6 / settings.completion_price) if settings.completion_price else settings.max_tokens

    @staticmethod
    def _spent(database: sqlite3.Connection, account: str) -> tuple[int, float]:
        row = database.execute("SELECT tokens, cost FROM spending WHERE account = ?", (account,)).fetchone()
        return (int(row[0]), float(row[1])) if row else (0, 0.0)

    @staticmethod
    def _add(database: sqlite3.Connection, account: str, tokens: int, cost: float) -> None:
        database.execute(
            "INSERT INTO spending VALUES (?, ?, ?) "
            "ON CONFLICT (account) DO UPDATE SET tokens = tokens + excluded.tokens, cost = cost + excluded.cost",
            (account, tokens, cost),
        )

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._path, timeout=10)) as database, database:
            yield database
