"""What the end-to-end test does to the cluster that it runs beside: kubectl, helm, jobs, and signals to processes in pods."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import parts  # noqa: E402

NAMESPACE, SHOP = "metering", "shop"  # of the release, and of those who use it
HOST = f"kubemeter.{NAMESPACE}.svc"  # the name in the gateway's certificate
STARTED = time.monotonic()
COMMAND_SECONDS = 240


class Failed(Exception):
    pass


def say(text):
    print(f"e2e: {time.monotonic() - STARTED:6.1f} s  {text}", flush=True)


def run(*command, text=None):
    """What the command prints; raises with what it says when it fails."""
    done = subprocess.run(
        [str(part) for part in command], input=text, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )
    if done.returncode:
        raise Failed(f"`{' '.join(map(str, command))}` failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def kubectl(*arguments, namespace=SHOP, text=None):
    return run("kubectl", "--namespace", namespace, *arguments, text=text)


def get(*arguments, namespace=SHOP):
    return json.loads(kubectl("get", *arguments, "--output=json", namespace=namespace))


def helm(verb, *arguments, wait=True):
    """Runs a verb on the release `kubemeter`, and waits for what it does where helm can."""
    waits = ["--wait", "--timeout=180s"] if wait and verb in ("install", "upgrade", "rollback") else []
    return run("helm", *verb.split(), "kubemeter", *arguments, *waits, "--namespace", NAMESPACE)


def until(what, check, seconds=60):
    """The first true answer of `check`, which may also fail until then. Returns it and how long that took."""
    start, last = time.monotonic(), None
    while True:
        try:
            if answer := check():
                return answer, time.monotonic() - start
        except (Failed, IndexError, KeyError, ValueError) as error:
            last = error
        if time.monotonic() - start > seconds:
            raise Failed(f"not within {seconds} s: {what}" + (f" ({last})" if last else ""))
        time.sleep(0.2)


def equal(what, found, expected):
    if found != expected:
        raise Failed(f"{what}: {found!r}, expected {expected!r}")


CALLER = {"calls-the-gateway": "yes"}
LEAST = {  # what the restricted pod security standard asks for
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def start_job(name, account, *arguments, authority=None, labels=CALLER):
    """A workload in the cluster, with a token of its service account for the gateway and nobody else.

    `authority`: a ConfigMap with the CA by which it knows the gateway, when it is to speak TLS.
    """
    token = {"serviceAccountToken": {"audience": "kubemeter", "expirationSeconds": 600, "path": "token"}}
    container = {
        "name": "client",
        "image": f"localhost/kubemeter-client:{parts.VERSION}",
        "imagePullPolicy": "Never",
        "args": list(arguments),
        "securityContext": LEAST,
        "volumeMounts": [
            {"name": "token", "mountPath": "/var/run/kubemeter", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "serviceAccountName": account,
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": [{"name": "token", "projected": {"sources": [token]}}, {"name": "tmp", "emptyDir": {}}],
    }
    if authority:
        container["args"] += [f"-url=https://{HOST}:8080", "-ca=/etc/gateway/ca.crt"]
        container["volumeMounts"].append({"name": "ca", "mountPath": "/etc/gateway", "readOnly": True})
        pod["volumes"].append({"name": "ca", "configMap": {"name": authority}})
    job = {"backoffLimit": 0, "activeDeadlineSeconds": 1200, "template": {"metadata": {"labels": labels}, "spec": pod}}
    manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": job}
    kubectl("create", "--filename=-", text=json.dumps(manifest))


def job_ended(name):
    """Whether the job has succeeded. Raises with what it said when it has failed."""
    status = get("job", name)["status"]
    if status.get("failed"):
        raise SystemExit(f"e2e: job {name} failed:\n{kubectl('logs', f'job/{name}', '--tail=20')}")
    return status.get("succeeded") == 1


def answer_to_job(name, account, path, authority=None):
    """What a workload gets that asks the gateway."""
    start_job(name, account, "get", f"-namespace={SHOP}", f"-path={path}", authority=authority)
    until(f"job {name} has an answer", lambda: job_ended(name))
    answer = json.loads(kubectl("logs", f"job/{name}"))
    kubectl("delete", "job", name)
    return answer


def ended(name):
    status = get("job", name)["status"]
    return status if status.get("succeeded") or status.get("failed") else None


def refused_jobs(account, calls):
    """Workloads that get no answer, since nothing that they send arrives; `calls`: the arguments and labels of each."""
    for name, (arguments, labels) in calls.items():
        start_job(name, account, "get", "-patience=5s", *arguments, labels=labels)
    for name in calls:
        status, _ = until(f"the end of job {name}", lambda name=name: ended(name))
        equal(f"jobs {name} that got an answer", status.get("succeeded", 0), 0)
        said = kubectl("logs", f"job/{name}")
        if "i/o timeout" not in said:
            raise Failed(f"job {name} says {said!r}, expected a time-out")
        kubectl("delete", "job", name)


def processes(command, pod=None):
    """Ids of the kubemeter processes of a command. All that can be seen from here are the cluster's own."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and (folder / "cmdline").read_bytes().startswith(b"/kubemeter\0" + command.encode()):
                environment = (folder / "environ").read_bytes().split(b"\0")
                if pod is None or f"HOSTNAME={pod}".encode() in environment:
                    found.append(int(folder.name))
    return found


def kill(command, pod=None):
    found = processes(command, pod)
    if not found:
        raise Failed(f"no process of `kubemeter {command}` is there to be killed")
    os.kill(found[0], signal.SIGKILL)


def keep_evidence(folder):
    """What is there to see after a failure."""
    folder.mkdir(exist_ok=True)
    for name, command in {
        "objects": "get pods,jobs,deployments,statefulsets,pvc,pv,hpa,meters,customers,leases -A -o wide",
        "events": "get events -A --sort-by=.metadata.creationTimestamp",
        "pods": "describe pods -A",
    }.items():
        with contextlib.suppress(Failed, subprocess.TimeoutExpired), (folder / name).open("w") as file:
            file.write(kubectl(*command.split()))
