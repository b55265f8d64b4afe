"""`labsandbox policy`: what may be done under which name."""

from typing import Annotated

import typer
import yaml
from rich.table import Table

from orchestrator.cli import options
from orchestrator.cli.terminal import console, print_json
from policies.merge import box_ceilings, terms_here
from policies.model import built_in_policies, load_policy

app = typer.Typer(no_args_is_help=True, help="Policies: what an experiment may use.")


@app.command("list")
def list_policies(as_json: options.Json = False) -> None:
    """The policies that come with labsandbox."""
    policies = [load_policy(name) for name in built_in_policies()]
    if as_json:
        print_json([{"name": policy.name, "description": policy.description} for policy in policies])
        return
    table = Table("policy", "description")
    for policy in policies:
        table.add_row(policy.name, policy.description)
    console().print(table)


@app.command("show")
def show_policy(
    name: Annotated[str, typer.Argument(help="A policy's name, or a YAML file.")], as_json: options.Json = False
) -> None:
    """A policy as it holds on this box: lowered to the box's ceiling, with its digest."""
    policy = load_policy(name)
    here = terms_here(policy, box_ceilings())
    shown = here.model_dump(mode="json")
    if as_json:
        print_json({**shown, "sha256": policy.sha256})
        return
    console().print(yaml.safe_dump(shown, sort_keys=False, width=1000).rstrip(), soft_wrap=True)
    console().print(f"# sha256 of the policy itself: {policy.sha256}", soft_wrap=True)
    if here != policy:
        console().print("# some terms are tightened by this box's ceiling")
