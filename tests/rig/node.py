#!/usr/bin/env python3
"""Runs a command beside a real one-node Kubernetes cluster: node.py [--image FILE]… -- COMMAND…

The cluster is etcd, kube-apiserver, kube-controller-manager, kube-scheduler, containerd, kubelet, kube-proxy and CoreDNS. All
of it, the pods and the command live in network, mount, process and host-name namespaces of their own. There is no
default route: nothing gets out. The first process's end is everybody's. The command finds the cluster by KUBECONFIG, its
exit code is this script's. It needs root, and what `scripts/setup.py kubernetes node` checks and builds.

State and logs are in .node/ at the top of the checkout, and stay there until the next run.
"""

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cgroups
from control_plane import Failed, die_with, parts  # which also knows where `parts` is

STATE = parts.ROOT / ".node"
LOCK = Path("/run/lock/kubemeter-node.lock")  # one node at a time: it has the whole machine
NAMESPACES = ["--net", "--mount", "--pid", "--uts", "--mount-proc", "--fork", "--kill-child"]


def outside(arguments):
    """Makes the namespaces, waits for what happens in them, and clears away what they don't take along: cgroups, files."""
    if os.geteuid() != 0:
        raise Failed("a node needs root: it makes namespaces, mounts and cgroups")
    stop_at_signals()
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failed("another node runs on this machine") from None
        clear()
        (STATE / "logs").mkdir(parents=True)
        cgroups.make()
        command = [sys.executable, __file__, "--inside", *sys.argv[1:]]
        # A session of its own: a Ctrl-C is for this process, which then ends the other.
        node = subprocess.Popen(
            ["unshare", *NAMESPACES, *command], preexec_fn=die_with(os.getpid()), start_new_session=True
        )
        try:
            return node.wait(timeout=arguments.seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"not done within {arguments.seconds} s: killed") from None
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # nothing stops the clearing up
            node.kill()
            node.wait()
            cgroups.remove()
            shutil.rmtree(STATE / "data", ignore_errors=True)


def stop_at_signals():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(128 + signal.SIGTERM))


def clear():
    """What a run has left that could not clear up: it was killed."""
    cgroups.remove()
    shutil.rmtree(STATE, ignore_errors=True)


def inside(arguments):
    """The first process of the namespaces: has a child do the work, and takes in what orphans leave."""
    worker = os.fork()
    if worker == 0:
        os._exit(work(arguments))
    while True:
        ended, status = os.wait()
        if ended == worker:
            return os.waitstatus_to_exitcode(status) & 0xFF


def work(arguments):
    import node_parts

    started = time.monotonic()
    plane = node_parts.Node(STATE)
    try:
        plane.start(arguments.image)
        print(f"node: ready after {time.monotonic() - started:.1f} s", flush=True)
        binaries = f"{parts.TOOLS}:{parts.node()}:{os.environ['PATH']}"
        environment = {**os.environ, "KUBECONFIG": str(plane.kubeconfig), "PATH": binaries}
        process = subprocess.Popen(arguments.command, env=environment)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=1)
            plane.check_children()
    except (Failed, OSError, subprocess.CalledProcessError) as error:
        print(f"node: {error}\nnode: logs are in {STATE / 'logs'}", file=sys.stderr, flush=True)
        return 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", action="append", default=[], help="a tar with an image to have on the node")
    parser.add_argument("--seconds", type=int, default=3600, help="how long all of it may take (default: 3600)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    try:
        return inside(arguments) if arguments.inside else outside(arguments)
    except Failed as error:
        print(f"node: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
