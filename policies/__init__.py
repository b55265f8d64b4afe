"""What is allowed, what was decided, and the log of both."""
