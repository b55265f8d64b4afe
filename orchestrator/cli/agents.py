"""`labsandbox agents`: the team, wherever it answers from."""

from typing import Annotated

import typer
from rich.table import Table

from orchestrator.agents.connect import connect
from orchestrator.agents.team import setup_team
from orchestrator.cli import options
from orchestrator.cli.run import Agents
from orchestrator.cli.terminal import console, harmless, note, one_line, print_json
from orchestrator.goal import check_goal
from orchestrator.settings import Settings
from policies.state import state_dir

app = typer.Typer(no_args_is_help=True, help="The team of agents.")


@app.command("setup")
def setup(agents: Agents = "auto", as_json: options.Json = False) -> None:
    """Register the team where it is missing or out of date."""
    with connect(Settings.read(note), agents, state_dir()) as connected:
        note(connected.why)
        done = setup_team(connected.client)
    if as_json:
        print_json(done)
        return
    for name, what in done.items():
        console.print(f"{name}: {what}")


@app.command("list")
def list_agents(agents: Agents = "auto", as_json: options.Json = False) -> None:
    """The agents that are registered for you."""
    with connect(Settings.read(note), agents, state_dir()) as connected:
        note(connected.why)
        found = connected.client.my_agents()
    if as_json:
        print_json([{"name": agent.name, "description": agent.description} for agent in found])
        return
    table = Table("agent", "description")
    for agent in found:
        table.add_row(one_line(agent.name), one_line(agent.description))
    console.print(table)


@app.command("consult")
def consult(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    agents: Agents = "auto",
    as_json: options.Json = False,
) -> None:
    """Ask the router, which chooses one of the service's own agents."""
    with connect(Settings.read(note), agents, state_dir()) as connected:
        note(connected.why)
        answer = connected.client.route(check_goal(question))
    if as_json:
        print_json({"routing": answer.routing.model_dump(), "result": answer.result})
        return
    routing = answer.routing
    sure = f", {routing.confidence:.0%} sure" if routing.confidence is not None else ""
    console.print(f"{one_line(routing.selected_agent)}{sure}: {one_line(routing.reasoning)}", soft_wrap=True)
    result = answer.result
    text = result.get("code") or result.get("response") or result if isinstance(result, dict) else result
    console.print(harmless(str(text)), soft_wrap=True)
