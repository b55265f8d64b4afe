"""Which destinations there are, and what has to be installed for each."""

import importlib.util
import os
from pathlib import Path

from results.export.csvfiles import CsvFolder
from results.export.names import DestinationName as DestinationName
from results.export.tracker import Destination, ExportError

_NEEDED = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "tensorboard": ("tensorboard",)}


def check_installed(to: DestinationName) -> None:
    """Raises ExportError, which names the command, where the extra is missing. Loads nothing."""
    if any(importlib.util.find_spec(module) is None for module in _NEEDED.get(to, ())):
        raise ExportError(f"{to} is not installed here: pip install 'labsandbox[{to}]'")


def check_online(to: DestinationName, online: bool) -> None:
    """Raises ExportError where there is no network to use."""
    if online and to not in {"wandb", "mlflow"}:
        raise ExportError(f"--online is for wandb and mlflow; {to} is files")
    if online and to == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ExportError("--online needs MLFLOW_TRACKING_URI, the store's address")


def destination(to: DestinationName, out: Path, online: bool = False) -> Destination:
    """Opens one; `online` lets W&B and MLflow use the network and the user's own settings for it. Raises ExportError."""
    check_installed(to)
    check_online(to, online)
    if to == "csv":
        return CsvFolder(out)
    if to == "tensorboard":
        from results.export.tensorboard_events import TensorBoardFolder

        return TensorBoardFolder(out)
    if to == "mlflow":
        from results.export.mlflow_store import MlflowStore

        return MlflowStore(out, online)
    from results.export.wandb_runs import WandbRuns

    return WandbRuns(out, online)
