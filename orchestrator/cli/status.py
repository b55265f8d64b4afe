"""What an execution's outcome means to the shell."""

from executor.experiment import Outcome

USAGE, DENIED, INFRASTRUCTURE, INTERRUPTED = 2, 3, 4, 130
_BY_OUTCOME = {
    Outcome.COMPLETED: 0,
    Outcome.DENIED: DENIED,
    Outcome.INFRASTRUCTURE: INFRASTRUCTURE,
    Outcome.CANCELLED: INTERRUPTED,
}


def exit_status(outcome: Outcome) -> int:
    """0 completed, 3 denied, 4 infrastructure, 130 interrupted, and 1 for an experiment that did not complete."""
    return _BY_OUTCOME.get(outcome, 1)
