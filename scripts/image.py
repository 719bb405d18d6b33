#!/usr/bin/env python3
"""Makes container images in target/images/, without a Docker daemon: `image.py kubemeter|evaluation|client…`.

kubemeter    what a cluster runs: the static program that `make image` has built and nothing else, and its bill of
             materials beside it
evaluation   `kubemeter clickhouse` with the embedded engine, for trying out and for tests: a program and the C library of
             this machine, since the engine can't be linked statically
client       what the end-to-end test sends and asks with

The same files give the same image, to the byte.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import oci
import parts
import sbom

TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or parts.ROOT / "target").resolve()
IMAGES = TARGET / "images"
STATIC = "x86_64-unknown-linux-musl"
MOST_BYTES = 30 * 1000 * 1000
USER = "65532:65532"  # nobody's; a name would need a file of names


class Failed(Exception):
    pass


def kubemeter():
    program = TARGET / STATIC / "release" / "kubemeter"
    need(program, "run `make image`")
    name, size = make("kubemeter", {"kubemeter": (program, 0o755)}, {"Entrypoint": ["/kubemeter"]})
    if size > MOST_BYTES:
        raise Failed(f"{name} has {size} bytes, more than {MOST_BYTES}")
    inside, all_of_them = sbom.write(IMAGES / "kubemeter.cdx.json", STATIC)
    print(f"{IMAGES / 'kubemeter.cdx.json'}: {inside} crates inside, {all_of_them - inside} more to build it")


def evaluation():
    program = TARGET / os.environ.get("PROFILE", "release") / "kubemeter"
    engine = Path(os.environ.get("KUBEMETER_ENGINE") or parts.ENGINE)
    need(program, "run `make build`")
    need(engine, "run `make setup`")
    libraries = {path for file in (program, engine) for path in needed_by(file)}
    with tempfile.TemporaryDirectory() as scratch:
        stripped = Path(scratch) / "kubemeter"
        subprocess.run(["strip", "--strip-debug", "-o", stripped, program], check=True)
        files = {path.lstrip("/"): (Path(path).resolve(), 0o755) for path in libraries}
        files.update({"kubemeter": (stripped, 0o755), "libchdb.so": (engine, 0o755)})
        config = {
            "Entrypoint": ["/kubemeter"],
            "Cmd": ["clickhouse"],
            "Env": ["KUBEMETER_ENGINE=/libchdb.so", "KUBEMETER_DATA_DIR=/data", "KUBEMETER_CLICKHOUSE_LISTEN=0.0.0.0:8123"],
            "ExposedPorts": {"8123/tcp": {}},
        }
        # Half a gigabyte: better fast than small, for it isn't sent anywhere.
        make("kubemeter-evaluation", files, config, level=1, newer_than=[program, engine])


def client():
    program = parts.node() / "client"
    need(program, "run `scripts/setup.py node`")
    make("kubemeter-client", {"client": (program, 0o755)}, {"Entrypoint": ["/client"]}, level=1)


def make(name, files, config, level=9, newer_than=()):
    reference = f"localhost/{name}:{parts.VERSION}"
    path = IMAGES / f"{name}.tar"
    made_from = [*newer_than, Path(__file__), Path(oci.__file__)]
    if newer_than and path.exists() and all(file.stat().st_mtime < path.stat().st_mtime for file in made_from):
        print(f"{path}: {reference} is up to date")
        return reference, path.stat().st_size
    IMAGES.mkdir(parents=True, exist_ok=True)
    labels = {"title": name, "version": parts.VERSION, "licenses": "Apache-2.0"}
    labels = {f"org.opencontainers.image.{key}": value for key, value in labels.items()}
    digest, size = oci.write(path, reference, files, {**config, "User": USER, "Labels": labels}, level)
    print(f"{path}: {reference}, {size / 1e6:.1f} MB compressed, {digest}")
    return reference, size


def needed_by(program):
    """The libraries that the loader would load for it, and the loader: paths as the loader knows them."""
    said = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return re.findall(r"(/\S+) \(0x", said)


def need(path, advice):
    if not path.exists():
        raise Failed(f"{path} is missing: {advice}")


def main():
    makers = {"kubemeter": kubemeter, "evaluation": evaluation, "client": client}
    if not sys.argv[1:] or set(sys.argv[1:]) - set(makers):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        for name in sys.argv[1:]:
            makers[name]()
    except (Failed, OSError, subprocess.CalledProcessError) as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
