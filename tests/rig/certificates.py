"""Certificates for tests, by openssl: a CA, and what it signs. Keys are of P-256; all of them are good for a day."""

import subprocess
from pathlib import Path


def authority(folder, name):
    """Makes a CA: `ca.crt` and `ca.key`."""
    more = ["-addext", "basicConstraints=critical,CA:true", "-addext", "keyUsage=critical,keyCertSign"]
    _request(folder, "ca", name, "-x509", "-days", "1", *more)


def issue(folder, name, *hosts):
    """Has the folder's CA sign a certificate, `NAME.crt` and `NAME.key`: a server's for these hosts, a client's without any."""
    _request(folder, name, name)
    extensions = ["basicConstraints=critical,CA:false", f"extendedKeyUsage={'serverAuth' if hosts else 'clientAuth'}"]
    if hosts:
        extensions.append("subjectAltName=" + ",".join(f"DNS:{host}" for host in hosts))
    file = Path(folder) / f"{name}.ext"
    file.write_text("\n".join(extensions) + "\n")
    signer = ["-CA", f"{folder}/ca.crt", "-CAkey", f"{folder}/ca.key"]
    made = ["-in", f"{folder}/{name}.csr", "-extfile", file, "-out", f"{folder}/{name}.crt"]
    _openssl("x509", "-req", "-days", "1", *signer, *made)


def serial(file):
    """A certificate's serial number, as a decimal."""
    return str(int(_openssl("x509", "-noout", "-serial", "-in", file).strip().partition("=")[2], 16))


def _request(folder, name, subject, *more):
    """A new key, and a request for its certificate, or with -x509 the certificate."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{folder}/{name}.key"]
    made = f"{folder}/{name}.{'crt' if '-x509' in more else 'csr'}"
    _openssl("req", *key, "-subj", f"/CN={subject}", *more, "-out", made)


def _openssl(*arguments):
    command = ["openssl", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"`{' '.join(command)}` failed: {done.stderr}")
    return done.stdout
