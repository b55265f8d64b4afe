"""What a person did that cannot be done: told in one line, exit status 2."""


class UsageProblem(ValueError):
    """A wrong option, file or goal."""
