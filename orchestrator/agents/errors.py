"""What can go wrong with an agent.

AgentError
├── AgentRefused         it understood and said no (4xx, or success: false): asking again will not help
└── AgentsUnavailable    no answer, or none that can be used: later, or elsewhere, it may work
"""


class AgentError(RuntimeError):
    """Base of this tree; the text is one line for people."""


class AgentRefused(AgentError):
    """The service's own words, in `said`, are why."""

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


class AgentsUnavailable(AgentError):
    """Connection, timeout, 5xx, or a malformed answer.

    after: seconds that the service asked to be left. unheard: the question certainly came to nobody.
    """

    def __init__(self, message: str, after: float | None = None, unheard: bool = False) -> None:
        super().__init__(message)
        self.after, self.unheard = after, unheard
