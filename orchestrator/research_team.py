"""`AIResearchTeam`: the lab as a Python object."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from executor.errors import RequestDenied
from executor.experiment import Execution, Experiment, Outcome, Sink
from orchestrator.agents.choice import AgentsChoice
from orchestrator.agents.client import LumenbridgeClient
from orchestrator.agents.connect import connect
from orchestrator.agents.errors import AgentRefused
from orchestrator.agents.team import Done, sandbox_facts, setup_team
from orchestrator.command import resuming
from orchestrator.context import Context, Progress, Silent, Terms
from orchestrator.errors import UsageProblem
from orchestrator.goal import check_goal
from orchestrator.journal import EVENTS, Journal
from orchestrator.lab_setup import Lab, LabOptions, open_lab
from orchestrator.recall import MOST
from orchestrator.settings import Settings
from orchestrator.spec import SprintSpec, put_on_record, recorded_spec
from orchestrator.sprint import Budgets, Sprint
from policies.decision import Decision
from policies.state import audit_path, memory_path, state_dir
from results.export.live import Following, Tracking
from results.memory import Memory, Recall
from results.store import RunFolder, Store
from results.summary import outcome_of


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
        require_signed: bool = False,
        options: LabOptions | None = None,
        results_dir: str | Path = "results",
        seed: int = 0,
        recall: bool = True,
        progress: Progress | None = None,
        budgets: Budgets | None = None,
        tracking: Tracking | None = None,
    ) -> None:
        self._progress = progress or Silent()
        found = Settings.read(warn=self._progress.note)
        self._settings = replace(
            found, lumenbridge_url=base_url or found.lumenbridge_url, user_id=user_id or found.user_id
        )
        self._agents: AgentsChoice = agents
        self._require_signed = require_signed
        self._options = options or LabOptions()
        self._results = Path(results_dir)
        self._seed = seed
        self._recalls = recall
        self._budgets = budgets
        self._tracking = tracking
        self.sprint_log: list[dict[str, Any]] = []
        """The summaries of this object's sprints, in order."""

    def setup_team(self) -> dict[str, Done]:
        """Registers the team where it is missing or out of date. Raises AgentError."""
        with connect(self._settings, self._agents, state_dir(), self._require_signed) as connected:
            return setup_team(connected.client)

    def run_sprint(self, goal: str, follows: str | None = None) -> dict[str, Any]:
        """Runs one sprint and returns its summary, which is also in the results folder.

        follows: the sprint whose recommendation the goal is. Raises UsageProblem for what is not a goal; PolicyError,
        RequestDenied, SandboxUnavailable or StoreError when nothing could be started; AgentError when no code came.
        """
        spec = self._spec(goal, follows)
        return self._carry_out(spec, lambda: self._new(spec))

    def prepare_sprint(self, goal: str, follows: str | None = None) -> str:
        """Makes the folder of a sprint that nobody has begun, for `resume_sprint`, and returns its id."""
        folder, journal = self._new(self._spec(goal, follows))
        folder.close()
        journal.close()
        return folder.id

    def resume_sprint(self, sprint: str) -> dict[str, Any]:
        """Carries on with a sprint at the first step that did not end, under the options that it began with.

        Raises StoreError or UsageProblem where it cannot be resumed, and whatever `run_sprint` raises.
        """
        store = Store(self._results)
        folder = store.existing(sprint)
        if folder.id.startswith("sweep_"):
            raise UsageProblem(f"{folder.id} is a sweep: {resuming(folder.id, self._results)} carries on with it")
        if not (folder.path / EVENTS).exists():
            raise UsageProblem(f"{folder.id} has no journal: it cannot be resumed")
        journal = Journal(folder.path / EVENTS)
        with journal:
            spec = recorded_spec(journal)
            if journal.done("end"):
                later = f" (labsandbox export {folder.id} --to {self._tracking.to})" if self._tracking else ""
                self._progress.note(f"{folder.id} has ended already; there is nothing left to do{later}")
                return store.summary(folder.id)
            try:
                return self._carry_out(spec, lambda: (folder, journal))
            except ValidationError:
                raise UsageProblem(f"{folder.id} was begun by another version of labsandbox: run it anew") from None

    def preflight(self) -> None:
        """Makes sure that a sprint could run. Raises PolicyError, RequestDenied or SandboxUnavailable."""
        lab = open_lab(self._options, self._progress.note)
        lab.executor.preflight(lab.policy, lab.request)

    def _spec(self, goal: str, follows: str | None) -> SprintSpec:
        return SprintSpec(
            goal=check_goal(goal),
            seed=self._seed,
            agents=self._agents,
            require_signed=self._require_signed,
            recall=self._recalls,
            options=self._options.portable(),
            follows=follows,
        )

    def _new(self, spec: SprintSpec) -> tuple[RunFolder, Journal]:
        folder = Store(self._results).new("sprint")
        journal = Journal(folder.path / EVENTS)
        put_on_record(spec, journal)
        return folder, journal

    def _carry_out(self, spec: SprintSpec, open_folder: Callable[[], tuple[RunFolder, Journal]]) -> dict[str, Any]:
        lab = open_lab(spec.options, self._progress.note)
        self._progress.note(lab.why)
        with connect(self._settings, spec.agents, state_dir(), spec.require_signed) as connected:
            self._progress.note(connected.why)
            # While the agents think, containers can be made for what they most likely write.
            expected = Experiment(code="", seed=spec.seed, imports=("torch", "lab"))
            terms = lab.executor.warm_up(expected, lab.policy, lab.request)
            self._set_up(connected.client)
            folder, journal = open_folder()
            about = {"goal": spec.goal, "base_seed": str(spec.seed)}
            with folder, journal, Following(self._tracking, folder.path, about, self._progress.note) as told:
                self._progress.note(f"results in {folder.path}")
                sprint = self._sprint(connected.client, lab, terms, spec, folder, journal, told)
                try:
                    summary = sprint.run(spec.goal)
                except (AgentRefused, RequestDenied):
                    raise  # it would be refused again
                except BaseException:
                    self._hint(folder)
                    raise
                told.conclude(summary)
                if not journal.done("end") and outcome_of(summary) != Outcome.DENIED:
                    self._hint(folder)
        self.sprint_log.append(summary)
        return summary

    def _hint(self, folder: RunFolder) -> None:
        self._progress.note(f"not finished: {resuming(folder.id, self._results)} carries on from here")

    def _set_up(self, client: LumenbridgeClient) -> None:
        for name, done in setup_team(client).items():
            if done == "taken":
                self._progress.note(f"{name}: the service keeps this name for an agent of somebody else's")

    def _sprint(
        self,
        client: LumenbridgeClient,
        lab: Lab,
        terms: Decision,
        spec: SprintSpec,
        folder: RunFolder,
        journal: Journal,
        told: Following,
    ) -> Sprint:
        def run_experiment(experiment: Experiment, sink: Sink, seconds: float) -> Execution:
            request = lab.request.at_most(wall=seconds) if seconds < terms.limits.wall else lab.request
            followed = told.attempt(self.watch(sink), experiment.code)
            execution = lab.executor.run(experiment, lab.policy, request, followed, sprint=folder.id)
            told.ended(execution)
            return execution

        context = Context(
            client,
            run_experiment,
            folder,
            journal,
            Terms(sandbox_facts(terms, lab.flavour), terms.limits.wall, lab.flavour),
            self._progress,
            spec.account,
        )
        command, recall = spec.command(self._results), self._recall(spec, folder)
        return Sprint(context, spec.seed, self._budgets, command, spec.follows, audit_path(), recall)

    def _recall(self, spec: SprintSpec, folder: RunFolder) -> Recall | None:
        """The sprint's own folder holds nothing yet, or what it is resumed from: it is not an earlier one."""
        if not spec.recall:
            return None
        memory = Memory(memory_path(), self._results)
        return lambda goal: memory.current(goal, 4 * MOST, without=folder.id)

    def watch(self, sink: Sink) -> Sink:
        """A place for subclasses to look at the results on their way; here they just pass."""
        return sink
