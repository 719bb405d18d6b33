"""The software bill of materials of a build: CycloneDX 1.6 from what cargo resolves for a target."""

import hashlib
import json
import re
import subprocess
import uuid

import parts


def write(path, target):
    """Says what is in the program built for `target` (scope `required`) and what only took part in building it
    (`excluded`: procedural macros, build scripts and what they use). No date: the same lock file gives the same bytes."""
    command = ["cargo", "metadata", "--format-version=1", "--locked", f"--filter-platform={target}"]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=parts.ROOT).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]

    def needs(identity, kinds):
        return sorted({dep["pkg"] for dep in nodes[identity]["deps"] if kinds & {k["kind"] for k in dep["dep_kinds"]}})

    def linked(identity):
        return [dep for dep in needs(identity, {None}) if not is_macro(packages[dep])]

    inside = reach(root, linked)
    everything = reach(root, lambda identity: needs(identity, {None, "build"}))
    locked = re.compile(r'name = "(.+)"\nversion = "(.+)"\nsource = .*\nchecksum = "(.+)"')
    checksums = {(name, version): sum for name, version, sum in locked.findall((parts.ROOT / "Cargo.lock").read_text())}
    components = [
        component(packages[identity], checksums, "required" if identity in inside else "excluded")
        for identity in sorted(everything - {root})
    ]
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component(packages[root], checksums, None)},
        "components": sorted(components, key=lambda found: found["bom-ref"]),
        "dependencies": [
            {
                "ref": reference(packages[identity]),
                "dependsOn": sorted(reference(packages[dep]) for dep in needs(identity, {None, "build"})),
            }
            for identity in sorted(everything)
        ],
    }
    content = hashlib.sha256(json.dumps(document).encode()).hexdigest()
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}"
    path.write_text(json.dumps(document, indent=1) + "\n")
    return sum(found["scope"] == "required" for found in components), len(components)


def reach(start, following):
    found, left = {start}, [start]
    while left:
        new = [identity for identity in following(left.pop()) if identity not in found]
        found.update(new)
        left.extend(new)
    return found


def is_macro(package):
    return any("proc-macro" in target["kind"] for target in package["targets"])


def reference(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package, checksums, scope):
    checksum = checksums.get((package["name"], package["version"]))
    told = {
        "type": "library" if scope else "application",
        "bom-ref": reference(package),
        "name": package["name"],
        "version": package["version"],
        "purl": reference(package),
        "scope": scope,
        "licenses": [{"expression": package["license"].replace("/", " OR ")}] if package["license"] else None,
        "hashes": [{"alg": "SHA-256", "content": checksum}] if checksum else None,
    }
    return {key: value for key, value in told.items() if value}
