#!/usr/bin/env python3
"""Runs Kubemeter on a real Kubernetes API server on this machine: `cluster.py up` and `cluster.py down`.

The control plane, ClickHouse, the operator and the gateway run in the background, their state in .cluster/ and their
logs in .cluster/logs/. `up` again goes on with the same data.

Variables: PROFILE (release or debug: which build runs), GATEWAY_PORT, OPERATOR_PORT, CLICKHOUSE_PORT.
"""

import contextlib
import fcntl
import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import parts

STATE = parts.ROOT / ".cluster"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or parts.ROOT / "target").resolve()
KUBEMETER = TARGET / os.environ.get("PROFILE", "release") / "kubemeter"
GATEWAY = f"127.0.0.1:{os.environ.get('GATEWAY_PORT', '8080')}"
OPERATOR = f"127.0.0.1:{os.environ.get('OPERATOR_PORT', '8081')}"
CLICKHOUSE = f"127.0.0.1:{os.environ.get('CLICKHOUSE_PORT', '8123')}"
DEADLINE_SECONDS = 60
STOP_SECONDS = 10


class Failed(Exception):
    pass


class Process:
    """A background process of the cluster.

    It holds a lock on its pid file for as long as it lives. So a pid in an unlocked file means nothing, and a locked
    one can't be that of a stranger.
    """

    def __init__(self, name):
        self.name = name
        self.pid_file = STATE / f"{name}.pid"
        self.log = STATE / "logs" / f"{name}.log"

    def runs(self):
        with contextlib.suppress(FileNotFoundError), self.pid_file.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def start(self, *command, **options):
        print(f"{self.name}: starting", flush=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.pid_file.open("wb", buffering=0) as pid_file, self.log.open("wb") as log:
            fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return subprocess.Popen(
                command,
                **{"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **options},
                pass_fds=[pid_file.fileno()],
                # By the process itself, so that there is no moment in which it runs and nobody knows its pid.
                preexec_fn=lambda: pid_file.write(str(os.getpid()).encode()),
                start_new_session=True,  # outlives the terminal, and is a process group to end as one
            )

    def stop(self):
        for number, doing in ((signal.SIGTERM, "stopping"), (signal.SIGKILL, "killing what did not stop")):
            if not self.runs():
                break
            print(f"{self.name}: {doing}", flush=True)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(self.pid_file.read_text()), number)
            deadline = time.monotonic() + STOP_SECONDS
            while self.runs() and time.monotonic() < deadline:
                time.sleep(0.05)
        self.pid_file.unlink(missing_ok=True)

    def wait_for(self, address, path):
        """Waits until GET answers 200."""
        start = news = time.monotonic()
        answer = "nothing"
        while self.runs() and (now := time.monotonic()) < start + DEADLINE_SECONDS:
            if now > news + 2:
                news = now
                print(f"{self.name}: not ready after {now - start:.0f} s: {answer}", flush=True)
            with contextlib.closing(http.client.HTTPConnection(address, timeout=5)) as connection:
                try:
                    connection.request("GET", path)
                    answer = connection.getresponse().status
                    if answer == 200:
                        return
                except (OSError, http.client.HTTPException) as error:
                    answer = error
            time.sleep(0.1)
        self.fail(f"http://{address}{path} answered {answer}" if self.runs() else "it ended")

    def fail(self, what):
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        raise Failed(f"{tail}\n{self.name}: {what} (log: {self.log})")


CONTROL_PLANE, CLICKHOUSE_SERVER, OPERATOR_PROCESS, GATEWAY_PROCESS = PROCESSES = [
    Process(name) for name in ("control-plane", "clickhouse", "operator", "gateway")
]


def up():
    kubeconfig = STATE / "kubeconfig"
    kubectl = parts.tool("kubectl")
    if not kubectl:
        raise Failed("kubectl is missing: run `make setup`")
    if not KUBEMETER.exists():
        raise Failed(f"{KUBEMETER} is missing: run `make build`")
    if all(process.runs() for process in PROCESSES):
        print("The cluster is up already.")
    else:
        down()  # what is left of a cluster that lost a part
        try:
            start(kubeconfig, kubectl)
        except BaseException:
            down()
            raise
    show_use(kubeconfig, kubectl)


def start(kubeconfig, kubectl):
    script = parts.ROOT / "tests" / "rig" / "control_plane.py"
    control_plane = CONTROL_PLANE.start(
        sys.executable, script, "--dir", STATE, "--ignore-stdin", stdout=subprocess.PIPE
    )
    clickhouse = ["clickhouse", "--data-dir", STATE / "clickhouse", "--listen", CLICKHOUSE]
    CLICKHOUSE_SERVER.start(KUBEMETER, *clickhouse)

    if not control_plane.stdout.readline():
        CONTROL_PLANE.fail("it ended")
    CLICKHOUSE_SERVER.wait_for(CLICKHOUSE, "/ping")
    crds = ["-f", parts.ROOT / "crds"]
    roles = ["-f", parts.ROOT / "charts" / "kubemeter" / "files" / "roles.yaml"]
    for command in (
        ["apply", "--server-side", "--force-conflicts", *crds],
        ["apply", "--server-side", "--force-conflicts", *roles],
        ["wait", "--for=condition=Established", "--timeout=30s", *crds],
    ):
        if subprocess.run([kubectl, "--kubeconfig", kubeconfig, *command]).returncode:
            raise Failed(f"`kubectl {' '.join(map(str, command))}` failed")

    environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
    store = ["--clickhouse-url", f"http://{CLICKHOUSE}"]
    OPERATOR_PROCESS.start(KUBEMETER, "operator", *store, "--listen", OPERATOR, env=environment)
    GATEWAY_PROCESS.start(KUBEMETER, "gateway", *store, "--listen", GATEWAY, env=environment)
    OPERATOR_PROCESS.wait_for(OPERATOR, "/readyz")
    GATEWAY_PROCESS.wait_for(GATEWAY, "/readyz")


def show_use(kubeconfig, kubectl):
    path = "" if shutil.which("kubectl") == kubectl else f"export PATH={Path(kubectl).parent}:$PATH\n"
    print(
        f"\n{path}export KUBECONFIG={kubeconfig}\n"
        "kubectl apply -f examples/\n"
        "kubectl get meters,customers\n"
        "\n# The gateway lets in who has a token and rights, here the service account `default`, which becomes an admin:\n"
        "kubectl create rolebinding you --clusterrole=admin --serviceaccount=default:default\n"
        "TOKEN=$(kubectl create token default)\n"
        f'curl -H "Authorization: Bearer $TOKEN" http://{GATEWAY}/meters\n\n'
        "`make cluster-down` ends it."
    )


def down():
    for process in reversed(PROCESSES):
        process.stop()


def main():
    if sys.argv[1:] not in (["up"], ["down"]):
        print(__doc__, file=sys.stderr)
        return 2
    STATE.mkdir(exist_ok=True)
    with (STATE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if sys.argv[1] == "up":
                up()
            else:
                down()
                print(f"The cluster is down. Its data stay in {STATE}.")
        except (Failed, OSError) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
