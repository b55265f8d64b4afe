"""Challenges that signed requests answer: each is good once, and for five minutes."""

import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any

from orchestrator.agents.keys import verifies

CHALLENGE_SECONDS = 300
_MAX_OPEN = 10_000


class NotSigned(Exception):
    """A request says that it is signed, and is not; the text says why."""


class Challenges:
    """The challenges that were given out and not yet used. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, float] = {}

    def new(self) -> dict[str, Any]:
        """Gives out another one, as an answer has it."""
        challenge, now = secrets.token_hex(32), time.monotonic()
        with self._lock:
            self._open = {text: end for text, end in self._open.items() if end > now}
            while len(self._open) >= _MAX_OPEN:
                del self._open[next(iter(self._open))]  # the oldest: nobody may fill the memory by asking
            self._open[challenge] = now + CHALLENGE_SECONDS
        return {"challenge": challenge, "expiresIn": CHALLENGE_SECONDS}

    def signer(self, headers: Mapping[str, str]) -> str | None:
        """The public key (hex) that signed a request; None for one that is not signed. Raises NotSigned."""
        given = [headers.get(name, "") for name in ("x-signature", "x-public-key", "x-challenge")]
        if not any(given):
            return None
        signature, public, challenge = given
        with self._lock:
            end = self._open.pop(challenge, None)
        if end is None or end < time.monotonic():
            raise NotSigned("the challenge is unknown, used or expired")
        try:
            good = verifies(bytes.fromhex(public), bytes.fromhex(signature), challenge.encode())
        except ValueError:
            good = False
        if not good:
            raise NotSigned("the signature does not fit the challenge and the key")
        return public.lower()
