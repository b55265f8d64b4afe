"""NVIDIA GPUs: which there are, who has which, how they get into a container, and what they are used for there."""
