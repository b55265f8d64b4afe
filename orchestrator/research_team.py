"""`AIResearchTeam`: the lab as a Python object."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from executor.experiment import Execution, Experiment, Sink
from orchestrator.agents.client import LumenbridgeClient
from orchestrator.agents.connect import AgentsChoice, Connected, connect
from orchestrator.agents.team import Done, sandbox_facts, setup_team
from orchestrator.command import repeating
from orchestrator.goal import check_goal
from orchestrator.lab_setup import Lab, LabOptions, open_lab
from orchestrator.settings import Settings
from orchestrator.sprint import Budgets, Progress, Silent, Sprint
from policies.decision import Decision
from policies.state import state_dir
from results.store import RunFolder, Store


class AIResearchTeam:
    """A team of agents and the sandbox that they work with; runs any number of sprints, one after another.

    base_url, user_id: the agents' service and this user's id there; by default as the environment or .env says, and
    without an address a local team. The other options are those of `labsandbox run`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        user_id: str | None = None,
        *,
        agents: AgentsChoice = "auto",
        options: LabOptions | None = None,
        results_dir: str | Path = "results",
        seed: int = 0,
        progress: Progress | None = None,
        budgets: Budgets | None = None,
    ) -> None:
        self._progress = progress or Silent()
        found = Settings.read(warn=self._progress.note)
        self._settings = Settings(base_url or found.lumenbridge_url, user_id or found.user_id)
        self._agents: AgentsChoice = agents
        self._options = options or LabOptions()
        self._results = Path(results_dir)
        self._seed = seed
        self._budgets = budgets
        self.sprint_log: list[dict[str, Any]] = []
        """The summaries of this object's sprints, in order."""

    def setup_team(self) -> dict[str, Done]:
        """Registers the team where it is missing or out of date. Raises AgentError."""
        with self._connected() as connected:
            return setup_team(connected.client)

    def run_sprint(self, goal: str) -> dict[str, Any]:
        """Runs one sprint and returns its summary, which is also in the results folder.

        Raises UsageProblem for what is no goal; PolicyError, RequestDenied, SandboxUnavailable or StoreError when
        nothing could be started; AgentError when no code came.
        """
        goal = check_goal(goal)
        lab = open_lab(self._options, self._progress.note)
        self._progress.note(lab.why)
        with self._connected() as connected:
            self._progress.note(connected.why)
            terms = lab.executor.preflight(lab.policy, lab.request)
            setup_team(connected.client)
            with Store(self._results).new("sprint") as folder:
                self._progress.note(f"results in {folder.path}")
                summary = self._sprint(connected.client, lab, terms, folder, goal).run(goal)
        self.sprint_log.append(summary)
        return summary

    def _sprint(self, client: LumenbridgeClient, lab: Lab, terms: Decision, folder: RunFolder, goal: str) -> Sprint:
        return Sprint(
            client,
            lambda experiment, sink: self._run_experiment(lab, experiment, sink, folder.id),
            folder,
            sandbox_facts(terms),
            self._progress,
            self._seed,
            self._budgets,
            repeating(goal, self._agents, self._options, self._results, self._seed),
        )

    def _run_experiment(self, lab: Lab, experiment: Experiment, sink: Sink, sprint_id: str) -> Execution:
        return lab.executor.run(experiment, lab.policy, lab.request, self.watch(sink), sprint=sprint_id)

    def watch(self, sink: Sink) -> Sink:
        """A place for subclasses to look at the results on their way; here they just pass."""
        return sink

    @contextmanager
    def _connected(self) -> Iterator[Connected]:
        with connect(self._settings, self._agents, state_dir()) as connected:
            yield connected
