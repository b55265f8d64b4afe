"""The bones of a container's root file system: a folder of mount points, links and a few files below /etc.

Containers of the same layout share one, which is made once: each sees it read-only, and all that it may write is mounted
over it. (Making and removing two dozen inodes for each container took longer than the runtime's own work on them.)
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

_ETC = {
    "passwd": "root:x:0:0:root:/:/bin/false\nexperiment:x:65534:65534:experiment:/workspace:/bin/sh\n",
    "group": "root:x:0:\nexperiment:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "hostname": "sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


def root_of(roots: Path, links: Mapping[str, str], mounts: Iterable[Mapping[str, Any]]) -> Path:
    """The root file system below `roots` with these links (path → target) and a mount point for each of an OCI
    configuration's `mounts`; made where it is not there. Raises OSError."""
    points = _points(mounts, links)
    layout = json.dumps([_ETC, dict(links), points], sort_keys=True)
    root = roots / sha256(layout.encode()).hexdigest()[:16]
    if not root.is_dir():
        roots.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = Path(tempfile.mkdtemp(dir=roots, prefix="."))
        try:
            _make(unfinished, links, points)
            unfinished.rename(root)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            if not root.is_dir():  # another process was faster
                raise
    return root


def _points(mounts: Iterable[Mapping[str, Any]], links: Iterable[str]) -> dict[str, int | None]:
    """Path → mode of the folder, or None for a file, of the mount points that are not below another one or a link."""
    points: dict[str, int | None] = {}
    for mount in mounts:
        path, source = str(mount["destination"]), Path(mount.get("source") or "")
        if not any(path.startswith(f"{above}/") for above in (*points, *links)):
            points[path] = _mode(mount) if source.is_dir() or not source.is_absolute() else None
    return points


def _mode(mount: Mapping[str, Any]) -> int:
    """runc gives a tmpfs the mode of its mount point, whatever its options say."""
    given = [option[5:] for option in mount.get("options") or () if option.startswith("mode=")]
    return int(given[0], 8) if given and mount.get("type") == "tmpfs" else 0o755


def _make(root: Path, links: Mapping[str, str], points: Mapping[str, int | None]) -> None:
    (root / "etc").mkdir()
    for name, text in _ETC.items():
        (root / "etc" / name).write_text(text)
        (root / "etc" / name).chmod(0o644)
    for path, mode in points.items():
        target = root / path[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch() if mode is None else target.mkdir(exist_ok=True)
    for path, leads_to in links.items():
        link = root / path[1:]
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(leads_to)
    for folder, _, _ in os.walk(root):  # whatever the caller's umask is, the experiment's user must get in
        Path(folder).chmod(points.get(f"/{Path(folder).relative_to(root)}") or 0o755)
