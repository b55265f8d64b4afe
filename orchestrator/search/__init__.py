"""Hyperparameter search: every trial an experiment in a container of its own."""
