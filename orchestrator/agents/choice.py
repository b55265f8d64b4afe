"""Who may answer, by name."""

from typing import Literal

EngineName = Literal["playbook", "llm"]
AgentsChoice = Literal["auto", "lumenbridge", "local", "playbook", "llm"]
"""`local` is `llm` where a model is set, otherwise `playbook`; `auto` is `lumenbridge` where its address is set."""
