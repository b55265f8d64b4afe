"""What may be asked for beyond a policy's own terms, apart from what it takes to read it: the command line loads this first."""

LIMIT_OPTIONS = ("wall", "cpus", "memory", "pids", "workspace", "gpus", "gpu_memory")
"""The limits that the command line and the dashboard's form ask for; the others can be asked for from Python only."""
GPU_WAIT = 600.0
"""Seconds to wait for GPUs, where nobody says otherwise."""
