"""Writes a container image as a tar that `docker load`, `podman load`, `ctr images import` and OCI tools take: an OCI
layout that has Docker's manifest.json beside it. The same input gives the same bytes."""

import gzip
import hashlib
import io
import json
import tarfile


def write(path, reference, files, config, level=9):
    """Writes the image `reference` (NAME:TAG) with one layer of `files`: path in the image → (source, mode).

    Returns the digest of its manifest, by which a registry will call it, and the layer's size.
    """
    layer = io.BytesIO()
    with gzip.GzipFile(fileobj=layer, mode="wb", compresslevel=level, mtime=0) as zipped:
        difference = _HashingWriter(zipped)
        _tar(difference, files)
    blobs = {}

    def blob(media_type, data):
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    layer = blob("application/vnd.oci.image.layer.v1.tar+gzip", layer.getvalue())
    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{difference.hash.hexdigest()}"]},
    }
    image = blob("application/vnd.oci.image.config.v1+json", _json(image))
    manifest_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = blob(
        manifest_type, _json({"schemaVersion": 2, "mediaType": manifest_type, "config": image, "layers": [layer]})
    )
    names = {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference.rpartition(":")[2]}
    index = {"schemaVersion": 2, "manifests": [{**manifest, "annotations": names}]}
    docker = [{"Config": _path(image), "RepoTags": [reference], "Layers": [_path(layer)]}]
    members = {
        **blobs,
        "index.json": _json(index),
        "manifest.json": _json(docker),
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
    }
    part = path.with_suffix(".partial")
    with part.open("wb") as file:
        _tar(file, {name: (data, 0o644) for name, data in members.items()})
    part.rename(path)
    return manifest["digest"], layer["size"]


def _tar(file, files):
    """Root's files of 1970 in the order of their names, each after its folders."""
    folders = set()
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
        for name, (source, mode) in sorted(files.items()):
            parents = name.split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                folder = tarfile.TarInfo("/".join(parents[:depth]))
                if folder.name not in folders:
                    folders.add(folder.name)
                    folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(folder)
            member = tarfile.TarInfo(name)
            member.mode = mode
            if isinstance(source, bytes):
                member.size = len(source)
                archive.addfile(member, io.BytesIO(source))
            else:
                with source.open("rb") as content:
                    member.size = source.stat().st_size
                    archive.addfile(member, content)


def _json(value):
    return json.dumps(value, separators=(",", ":")).encode()


def _path(descriptor):
    return "blobs/" + descriptor["digest"].replace(":", "/")


class _HashingWriter:
    """Passes on what is written, and hashes it."""

    def __init__(self, target):
        self.target, self.hash = target, hashlib.sha256()

    def write(self, data):
        self.hash.update(data)
        return self.target.write(data)
