#!/usr/bin/env python3
"""Checks what cargo brings in: licences that go with Apache-2.0, and one TLS provider."""

import json
import re
import subprocess
import sys

# Permissive licences, and the file-level copyleft of MPL-2.0, which leaves our own files alone.
ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "CDLA-Permissive-2.0", "ISC", "MIT", "MIT-0", "MPL-2.0", "Unicode-3.0", "Unlicense", "Zlib",
}
# rustls with ring is the one; a second one means that a crate's features brought it in.
OTHER_TLS = {"aws-lc-rs", "boring", "native-tls", "openssl", "openssl-sys"}


def allowed(expression: str) -> bool:
    """Whether a choice in an SPDX expression is allowed: `A OR B` needs one, `A AND B` both."""
    text = expression.replace("/", " OR ")
    names = sorted(set(re.findall(r"[A-Za-z0-9.+-]+(?: WITH [A-Za-z0-9.+-]+)?", text)) - {"OR", "AND"}, key=len, reverse=True)
    for name in names:
        text = re.sub(rf"(?<![\w.+-]){re.escape(name)}(?![\w.+-])", str(name in ALLOWED), text)
    return re.fullmatch(r"(True|False|OR|AND|[() ])+", text) is not None and bool(eval(text.replace("OR", "or").replace("AND", "and")))


def main() -> int:
    metadata = subprocess.run(["cargo", "metadata", "--format-version", "1", "--locked"], check=True, stdout=subprocess.PIPE)
    packages = json.loads(metadata.stdout)["packages"]
    wrong = []
    for package in packages:
        name = f"{package['name']} {package['version']}"
        licence = package["license"]
        if licence is None or not allowed(licence):
            wrong.append(f"{name}: licence {licence!r} is not among those that scripts/dependencies.py allows")
        if package["name"] in OTHER_TLS:
            wrong.append(f"{name}: a second TLS provider; find who brings it in by `cargo tree -i {package['name']}`")
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"dependencies: {len(packages)} packages, {len(wrong)} not allowed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
