"""The parts that the tests and the local cluster run on: which versions, and where they are kept.

The cache outlives checkouts and `make clean`. A folder in it is named by the version of what it holds and
appears by one rename, so what is there is whole.
"""

import hashlib
import os
import platform
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(
    os.environ.get("KUBEMETER_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kubemeter"
)
_ARCHITECTURE = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64"}
PLATFORM = f"{sys.platform}-{_ARCHITECTURE.get(platform.machine(), platform.machine())}"

VERSION = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)

# libchdb is the whole of ClickHouse as a library; `src/engine` looks for it under this version.
ENGINE_VERSION = "26.7.3-stable.1"
ENGINE = CACHE / "engine" / ENGINE_VERSION / "libchdb.so"

HELM_VERSION = "v4.3.1"
KUBECTL_VERSION = "v1.37.1"
TOOLS = CACHE / "bin" / f"helm-{HELM_VERSION}-kubectl-{KUBECTL_VERSION}"
# The chart is for this one, too.
HELM3_VERSION = "v3.17.2"
HELM3 = CACHE / "bin" / f"helm-{HELM3_VERSION}"

# Debian's package, which is built from source there.
PROMETHEUS_VERSION = "2.42.0+ds-5+deb12u1"
PROMETHEUS = CACHE / "prometheus" / PROMETHEUS_VERSION
PROMETHEUS_BINARIES = ("prometheus", "promtool")

KUBERNETES_MODULE = ROOT / "tests" / "kubernetes"
KUBERNETES_BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager")

NODE_MODULE = ROOT / "tests" / "node"
NODE_BINARIES = (
    *("kubelet", "kube-proxy", "kube-scheduler"),
    *("containerd", "containerd-shim-runc-v2", "ctr"),
    *("pause", "coredns", "metrics-server", "client"),
)


def module_version(module, folder=KUBERNETES_MODULE):
    """The version of a Go module that a go.mod requires."""
    go_mod = (folder / "go.mod").read_text()
    return re.search(rf"^\s*{re.escape(module)} (v\S+)", go_mod, re.MULTILINE).group(1)


def kubernetes():
    """The folder of the control plane's binaries: KUBEBUILDER_ASSETS, or the one that the set-up builds."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets:
        return Path(assets)
    versions = f"{module_version('k8s.io/kubernetes')}-etcd-{module_version('go.etcd.io/etcd/server/v3')}"
    return CACHE / "kubernetes" / versions


def node():
    """The folder of what a node runs, named by what it is built from."""
    sources = hashlib.sha256()
    for path in sorted(NODE_MODULE.rglob("*")):
        if path.is_file():
            sources.update(f"{path.relative_to(NODE_MODULE)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return CACHE / "node" / f"{module_version('k8s.io/kubernetes')}-{sources.hexdigest()[:16]}"


def tool(name):
    """The path of `helm`, `helm3`, `kubectl`, `prometheus` or `promtool`: the pinned one, else the one on PATH, else None."""
    folder = HELM3 if name == "helm3" else PROMETHEUS if name in PROMETHEUS_BINARIES else TOOLS
    pinned = folder / name
    return str(pinned) if pinned.exists() else shutil.which(name)
