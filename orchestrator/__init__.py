"""A person's or a program's wish: the command line, the agents, the sprint."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.research_team import AIResearchTeam

__all__ = ["AIResearchTeam"]


def __getattr__(name: str) -> Any:
    """Loads the team when it is asked for: importing this package for one of its modules stays cheap."""
    if name == "AIResearchTeam":
        from orchestrator.research_team import AIResearchTeam

        return AIResearchTeam
    raise AttributeError(f"module 'orchestrator' has no attribute {name!r}")
