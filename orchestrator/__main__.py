"""`python -m orchestrator` is `labsandbox`."""

from orchestrator.cli.main import main

main()
