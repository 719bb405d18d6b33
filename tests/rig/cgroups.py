"""The control groups of the node, which outlive the processes in them: the one thing that no namespace takes along."""

import contextlib
import os
import time
from pathlib import Path

TOP = Path("/sys/fs/cgroup")
NAME = "kubemeter-node"
SECONDS = 10


def hierarchies():
    """The folders in which a group is made: one per controller in version 1, one for all in version 2."""
    if (TOP / "cgroup.controllers").exists():
        return [TOP]
    return sorted(path for path in TOP.iterdir() if path.is_dir() and not path.is_symlink() and path.name != "unified")


def make():
    for hierarchy in hierarchies():
        group = hierarchy / NAME
        group.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):  # a new group has none, and takes no process then
            if (hierarchy / name).exists() and not (hierarchy / "cgroup.controllers").exists():
                (group / name).write_text((hierarchy / name).read_text())


def remove():
    """Removes the groups, once the kernel has let go of the processes that were in them."""
    deadline = time.monotonic() + SECONDS
    folders = [*hierarchies(), TOP / "unified"]
    while any(not _remove(hierarchy / NAME) for hierarchy in folders):
        if time.monotonic() > deadline:
            raise OSError(f"{TOP}/*/{NAME} could not be removed: is a process left in it?")
        time.sleep(0.1)


def _remove(group):
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    return not group.exists()
