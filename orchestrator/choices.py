"""What options may be, apart from what it takes to use them: the command line loads this first."""

from typing import Literal

BackendChoice = Literal["auto", "docker", "oci"]
