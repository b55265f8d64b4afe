"""What is inside the container: locks, Dockerfiles, the seccomp profile, and the `lab` library.

The library's code runs only inside; the host imports from this package what builds images and environments.
"""
