"""`labsandbox ui`: the lab in a browser. Nothing that an experiment, an agent or a file name says is ever markup."""
