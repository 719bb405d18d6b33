#!/usr/bin/env python3
"""Runs a real Kubernetes control plane in the foreground: etcd, kube-apiserver and kube-controller-manager.

When it serves, one line of JSON on stdout says how to reach it; `ca` and `kubeconfig` are files:

    {"kubeconfig": "...", "url": "...", "ca": "...", "adminToken": "..."}

It ends at the end of stdin, at SIGTERM or at SIGINT, and no child outlives it: on Linux not even after its own
SIGKILL. There is no node: objects are stored, validated, authorised, watched and collected, but no pod runs.
"""

import argparse
import base64
import contextlib
import ctypes
import http.client
import json
import os
import random
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import parts  # noqa: E402

DEADLINE_SECONDS = 60
# What the tests need of the controller-manager: namespaces end, owned objects are collected, every namespace has a
# service account, and roles aggregate. The others would only take memory.
CONTROLLERS = [
    "clusterrole-aggregation-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
]


class Failed(Exception):
    pass


def free_port():
    """A port that nobody listens on, outside the range from which the kernel takes those of outgoing connections."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def signing_key():
    """A new P-256 private key as PEM (RFC 5915), without the optional public half, which its readers derive."""
    scalar = secrets.randbelow(1 << 255) + 1  # below the order of the curve, which is nearly 2^256
    oid = bytes.fromhex("a00a06082a8648ce3d030107")  # [0] prime256v1
    der = bytes.fromhex("30310201010420") + scalar.to_bytes(32, "big") + oid
    return f"-----BEGIN EC PRIVATE KEY-----\n{base64.b64encode(der).decode()}\n-----END EC PRIVATE KEY-----\n"


def write_secret(path, text):
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


class ControlPlane:
    address = "127.0.0.1"
    controllers = CONTROLLERS
    controller_flags = []
    # Without nodes there is nothing to serve at an endpoint, which can't be a loopback address anyway.
    more_flags = ["--authorization-mode=RBAC", "--endpoint-reconciler-type=none"]

    def __init__(self, directory, port, audit_log=None):
        self.binaries = parts.kubernetes()
        self.directory = directory
        self.logs = directory / "logs"
        self.port = port or free_port()
        self.url = f"https://{self.address}:{self.port}"
        self.ca = directory / "certs" / "apiserver.crt"  # signs itself; written by the API server
        self.key = directory / "service-accounts.key"
        self.kubeconfig = directory / "kubeconfig"
        self.token = secrets.token_hex(16)
        self.audit_log = audit_log
        self.children = {}

    def start(self):
        self.logs.mkdir(parents=True, exist_ok=True)
        if not self.key.exists():
            write_secret(self.key, signing_key())
        tokens = self.directory / "tokens.csv"
        write_secret(tokens, "".join(line + "\n" for line in self.tokens()))

        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self.spawn(
            "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # what this holds need not survive the machine
        )
        self.spawn(
            "kube-apiserver",
            f"--etcd-servers={client}",
            f"--secure-port={self.port}",
            f"--bind-address={self.address}",
            f"--cert-dir={self.ca.parent}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.key}",
            f"--service-account-signing-key-file={self.key}",
            f"--token-auth-file={tokens}",
            *self.audit_flags(),
            *self.more_flags,
        )
        self.wait_for("/readyz")
        self.write_kubeconfig(self.kubeconfig, self.token)
        self.spawn(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            f"--controllers={','.join(self.controllers)}",
            f"--service-account-private-key-file={self.key}",
            f"--root-ca-file={self.ca}",
            "--leader-elect=false",
            "--secure-port=0",
            *self.controller_flags,
        )
        # Made by the controller-manager, in a namespace made by the API server: both are at work.
        self.wait_for("/api/v1/namespaces/default/serviceaccounts/default")

    def tokens(self):
        """Who may call the API server: lines of its --token-auth-file."""
        return [f'{self.token},admin,admin,"system:masters"']

    def audit_flags(self):
        """What it takes to have each call in the log once when it begins to be answered, and once when it has been."""
        if not self.audit_log:
            return []
        policy = self.directory / "audit-policy.json"
        rules = {"omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}]}
        policy.write_text(json.dumps({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", **rules}))
        return [f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}"]

    def spawn(self, name, *flags, binaries=None):
        binary = (binaries or self.binaries) / name
        if not binary.exists():
            raise Failed(f"{binary} is missing: run `scripts/setup.py {'node' if binaries else 'kubernetes'}`")
        with open(self.logs / f"{name}.log", "wb") as log:
            self.children[name] = subprocess.Popen(
                [binary, *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with(os.getpid()),
                start_new_session=True,  # a Ctrl-C is for this process, which then ends its children
            )

    def check_children(self):
        for name, child in self.children.items():
            if child.poll() is not None:
                lines = (self.logs / f"{name}.log").read_text(errors="replace").splitlines()
                raise Failed("\n".join([*lines[-15:], f"{name} ended with code {child.returncode}"]))

    def wait_for(self, path):
        deadline = time.monotonic() + DEADLINE_SECONDS
        answer = "nothing"
        while True:
            self.check_children()
            try:
                answer = self.get(path)
                if answer == 200:
                    return
            except (OSError, http.client.HTTPException) as error:  # the CA appears only when the server is nearly up
                answer = error
            if time.monotonic() > deadline:
                raise Failed(f"{self.url}{path} was not ready after {DEADLINE_SECONDS} s: {answer}")
            time.sleep(0.05)

    def get(self, path):
        """The status of an answer to the admin, over the CA that clients are given."""
        trust = ssl.create_default_context(cafile=self.ca)
        with contextlib.closing(http.client.HTTPSConnection(self.address, self.port, timeout=5, context=trust)) as api:
            api.request("GET", path, headers={"Authorization": f"Bearer {self.token}"})
            return api.getresponse().status

    def write_kubeconfig(self, path, token):
        cluster = {
            "server": self.url,
            "certificate-authority-data": base64.b64encode(self.ca.read_bytes()).decode(),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "kubemeter", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "kubemeter", "context": {"cluster": "kubemeter", "user": "admin"}}],
            "current-context": "kubemeter",
        }
        write_secret(path, json.dumps(config, indent=2))  # JSON is YAML

    def stop(self):
        # Nothing is lost by SIGKILL: what etcd has confirmed is in the files.
        for child in self.children.values():
            child.kill()
        for child in self.children.values():
            child.wait()


def die_with(parent):
    """What a child does before exec so that the kernel ends it when `parent` ends, however that comes about."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    set_parent_death_signal = 1

    def before_exec():
        prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)

    return before_exec


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, help="for state, logs and credentials (default: one removed at the end)")
    parser.add_argument("--port", type=int, help="of the API server (default: a free one)")
    parser.add_argument("--audit-log", type=Path, help="where the API server logs every call, a JSON object a line")
    parser.add_argument("--ignore-stdin", action="store_true", help="end at a signal only")
    arguments = parser.parse_args()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    directory = arguments.dir or Path(tempfile.mkdtemp(prefix="kubemeter-control-plane-"))
    plane = ControlPlane(directory.resolve(), arguments.port, arguments.audit_log)
    try:
        plane.start()
        # From here a child's end interrupts the wait below.
        signal.signal(signal.SIGCHLD, lambda *_: plane.check_children())
        plane.check_children()
        ready = {"kubeconfig": plane.kubeconfig, "url": plane.url, "ca": plane.ca, "adminToken": plane.token}
        print(json.dumps(ready, default=str), flush=True)
        while arguments.ignore_stdin:
            signal.pause()
        sys.stdin.buffer.read()
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # nothing stops the clearing up
        plane.stop()
        if not arguments.dir:
            shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
