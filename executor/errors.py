"""What can go wrong around an experiment.

    ExecutorError
    ├── RequestDenied           the policy says no: nothing was started
    ├── SandboxUnavailable      no backend, image, runtime or device: nothing was started
    ├── PackagesUnavailable     the packages that the experiment wants are not available: nothing was started
    └── InfrastructureError     something broke under a run: the container died, the engine went, the channel is torn

What the experiment itself does wrong is no exception: it is an `Outcome`.
"""


class ExecutorError(RuntimeError):
    """Base of this tree; the text is one line for people."""


class RequestDenied(ExecutorError):
    """The policy denies what was asked for; the text is its reason."""


class SandboxUnavailable(ExecutorError):
    """Nothing was started, and the text says what is missing and what to do about it."""


class PackagesUnavailable(ExecutorError):
    """No wheels fit what the experiment requires; the text says which and why."""


class InfrastructureError(ExecutorError):
    """A run was under way and something that is not the experiment's broke."""


class ChannelError(InfrastructureError):
    """The container sent something that is no frame, or stopped in the middle of one."""
