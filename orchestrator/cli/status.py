"""What an execution's outcome means to the shell."""

USAGE, DENIED, INFRASTRUCTURE, INTERRUPTED = 2, 3, 4, 130
_BY_OUTCOME = {
    "completed": 0,
    "denied": DENIED,
    "infrastructure": INFRASTRUCTURE,
    "cancelled": INTERRUPTED,
}


def exit_status(outcome: str) -> int:
    """0 completed, 3 denied, 4 infrastructure, 130 interrupted, and 1 for an experiment that did not complete."""
    return _BY_OUTCOME.get(outcome, 1)
