#!/usr/bin/env python3
"""Measures the operator with many objects, on a real API server and a real ClickHouse of this machine.

1,000 Meters and 1,000 Customers in 20 namespaces come by `kubectl apply`. How long until all are Ready, how much memory
does the operator take, what does it ask of the API server in an idle minute, and what does a restart cost? docs/operator.md
says more. The result is printed as Markdown; with --write it also goes there.
"""

import argparse
import collections
import contextlib
import datetime
import http.client
import json
import os
import platform
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

import parts

sys.path.insert(0, str(parts.ROOT / "tests" / "rig"))
from control_plane import die_with, free_port  # noqa: E402

TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or parts.ROOT / "target").resolve()
PROFILE = os.environ.get("PROFILE", "release")
KUBEMETER = TARGET / PROFILE / "kubemeter"
DOCUMENT = parts.ROOT / "docs" / "operator.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
LIMIT_SECONDS = 1200  # for all of it
STEP_SECONDS = 600  # for anything that has to happen
QUIET_SECONDS = 5  # without a call of the operator's: it has nothing to do
AGENT = "kubemeter-operator/"


class Failed(Exception):
    pass


def say(text):
    print(text, file=sys.stderr, flush=True)


def wait(what, check, progress=lambda: ""):
    """Waits until `check` is true, and says every five seconds that it waits."""
    start = news = time.monotonic()
    while not check():
        now = time.monotonic()
        if now > start + STEP_SECONDS:
            raise Failed(f"{what}: not within {STEP_SECONDS} s {progress()}")
        if now > news + 5:
            news = now
            say(f"  {what}: {now - start:.0f} s {progress()}")
        time.sleep(0.05)
    return time.monotonic() - start


# --- the parts ----------------------------------------------------------------------------------------------------


class Part:
    """A child process. It ends with this one, however that comes about."""

    def __init__(self, name, folder, command, **options):
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                **{"stdin": subprocess.PIPE, "stdout": log, "stderr": log, **options},
                preexec_fn=die_with(os.getpid()),
                start_new_session=True,
            )

    def stop(self):
        with contextlib.suppress(OSError):
            self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def alive(self):
        if self.process.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise Failed(f"{tail}\n{self.name} ended with code {self.process.returncode}")
        return True

    def memory(self, field):
        """VmRSS or VmHWM (the peak), in MiB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
        raise Failed(f"/proc has no {field} of {self.name}")


class Operator(Part):
    def __init__(self, folder, clickhouse, kubeconfig):
        self.address = f"127.0.0.1:{free_port()}"
        command = [KUBEMETER, "operator", "--clickhouse-url", clickhouse, "--listen", self.address]
        super().__init__("operator", folder, command, env={**os.environ, "KUBECONFIG": str(kubeconfig)})

    def get(self, path):
        self.alive()
        try:
            with contextlib.closing(http.client.HTTPConnection(self.address, timeout=5)) as connection:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
        except OSError:
            return 0, ""

    def ready(self):
        return self.get("/readyz")[0] == 200 and "kubemeter_leading 1" in self.get("/metrics")[1]

    def reconciled(self):
        """How many reconciles have ended well."""
        lines = self.get("/metrics")[1].splitlines()
        found = [line for line in lines if line.startswith("kubemeter_reconciles_total{") and 'result="ok"' in line]
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in found)


class Audit:
    """The API server's log of calls, of which the operator's are read."""

    def __init__(self, path):
        self.path, self.offset, self.seen = path, 0, set()
        self.all = collections.Counter()  # since it was last cleared

    def new(self):
        """Calls since the last look: what each was, with how many there were."""
        calls = collections.Counter()
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.offset += len(line)
                event = json.loads(line)
                if not event.get("userAgent", "").startswith(AGENT) or event["auditID"] in self.seen:
                    continue
                self.seen.add(event["auditID"])
                object_of = event.get("objectRef", {})
                resource = "/".join(filter(None, (object_of.get("resource"), object_of.get("subresource"))))
                calls[f"{event['verb']} {resource or event['requestURI']}"] += 1
        self.all += calls
        return calls

    def quiet(self):
        """Waits until nothing but leases and watches has been called for a while."""
        last = time.monotonic()

        def check():
            nonlocal last
            if any(not expected(call) for call in self.new()):
                last = time.monotonic()
            return time.monotonic() > last + QUIET_SECONDS

        wait("the operator comes to rest", check)


def expected(call):
    """Whether an idle operator may make a call."""
    return call.endswith(" leases") or call.startswith("watch ")


class ReadyWatch(threading.Thread):
    """Follows a kind, and knows which of its objects are Ready."""

    def __init__(self, plane, kind):
        super().__init__(daemon=True)
        self.plane, self.kind, self.ready, self.failed = plane, kind, set(), None
        self.start()

    def run(self):
        url = urllib.parse.urlsplit(self.plane["url"])
        trust = ssl.create_default_context(cafile=self.plane["ca"])
        path = f"/apis/kubemeter.io/v1alpha1/{self.kind}?watch=1&timeoutSeconds={LIMIT_SECONDS}"
        try:
            while True:
                connection = http.client.HTTPSConnection(url.hostname, url.port, timeout=LIMIT_SECONDS, context=trust)
                connection.request("GET", path, headers={"Authorization": f"Bearer {self.plane['adminToken']}"})
                answer = connection.getresponse()
                if answer.status == 200:
                    break
                if answer.status != 429:  # a kind that was defined just now
                    raise Failed(answer.read().decode())
                time.sleep(0.2)
            for line in answer:
                self.note(json.loads(line)["object"])
        except (Failed, OSError, http.client.HTTPException, ValueError, KeyError) as error:
            self.failed = error

    def note(self, thing):
        conditions = thing.get("status", {}).get("conditions", [])
        name = f"{thing['metadata']['namespace']}/{thing['metadata']['name']}"
        if any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions):
            self.ready.add(name)
        else:
            self.ready.discard(name)


class ClickHouse(Part):
    def __init__(self, folder):
        self.port = free_port()
        command = ["clickhouse", "--stop-with-stdin", "--listen", f"127.0.0.1:{self.port}", "--data-dir", folder / "clickhouse"]
        super().__init__("clickhouse-server", folder, [KUBEMETER, *command])
        self.url = f"http://127.0.0.1:{self.port}"
        wait("ClickHouse answers", self.answers)

    def answers(self):
        self.alive()
        with contextlib.suppress(OSError, Failed):
            return self.ask("SELECT 1") == "1\n"

    def ask(self, sql):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request("POST", "/", body=sql)
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status != 200:
                raise Failed(text)
            return text

    def statements(self):
        """By ClickHouse's own counters: reads, and statements that neither read nor insert, which are DDL."""
        text = self.ask("SELECT event, value FROM system.events WHERE event IN ('Query', 'SelectQuery', 'InsertQuery')")
        counts = collections.Counter({name: int(value) for name, value in (line.split("\t") for line in text.splitlines())})
        return counts["SelectQuery"], counts["Query"] - counts["SelectQuery"] - counts["InsertQuery"]


# --- the objects --------------------------------------------------------------------------------------------------


def manifests(arguments, folder):
    """Files of Meters and Customers, spread over the namespaces."""
    meter_specs = [
        {"aggregation": "Count"},
        {"aggregation": "Sum", "valueProperty": "$.tokens", "groupBy": {"model": "$.model", "region": "$.region"}},
        {"aggregation": "Max", "valueProperty": "$.bytes"},
        {"aggregation": "UniqueCount", "valueProperty": "$.user", "groupBy": {"plan": "$.plan"}},
    ]
    files = collections.defaultdict(list)

    def add(kind, number, name, spec):
        namespace = f"team-{number % arguments.namespaces:02}"
        metadata = {"name": name, "namespace": namespace}
        files[namespace].append({"apiVersion": "kubemeter.io/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})

    for number in range(arguments.meters):
        spec = {"eventType": f"service-{number}.used", "unit": "1", **meter_specs[number % len(meter_specs)]}
        add("Meter", number, f"meter-{number:04}", spec)
    for number in range(arguments.customers):
        subjects = [f"customer-{number:04}-prod", f"customer-{number:04}-test"]
        add("Customer", number, f"customer-{number:04}", {"displayName": f"Customer {number}", "subjects": subjects})
    folder.mkdir()
    for namespace, items in files.items():
        (folder / f"{namespace}.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    return list(files)


# --- the measurement ----------------------------------------------------------------------------------------------


def measure(arguments, folder, stack):
    """All figures, as rows of a table."""
    kubectl = parts.tool("kubectl")
    if not kubectl:
        raise Failed("kubectl is missing: run `make setup`")
    if not KUBEMETER.exists():
        raise Failed(f"{KUBEMETER} is missing: run `make build PROFILE={PROFILE}`")

    def start(part, *rest, **options):
        made = part(*rest, **options)
        stack.callback(made.stop)
        return made

    say("starting the API server and ClickHouse")
    audit_log = folder / "audit.log"
    script = parts.ROOT / "tests" / "rig" / "control_plane.py"
    command = [sys.executable, script, "--dir", folder / "plane", "--audit-log", audit_log]
    (folder / "plane").mkdir()
    control_plane = start(Part, "control-plane", folder, command, stdout=subprocess.PIPE)
    clickhouse = start(ClickHouse, folder)
    line = control_plane.process.stdout.readline()
    if not line:
        control_plane.process.wait()
        control_plane.alive()
    plane = json.loads(line)

    def run(*words, **options):
        done = subprocess.run([kubectl, "--kubeconfig", plane["kubeconfig"], *map(str, words)], capture_output=True, text=True, **options)
        if done.returncode:
            raise Failed(f"`kubectl {' '.join(map(str, words))}` failed:\n{done.stderr[-2000:]}")

    run("apply", "--server-side", "-f", parts.ROOT / "crds")
    run("wait", "--for=condition=Established", "--timeout=60s", "-f", parts.ROOT / "crds")
    for namespace in manifests(arguments, folder / "manifests"):
        run("create", "namespace", namespace)
    operator = start(Operator, folder, clickhouse.url, plane["kubeconfig"])
    wait("the operator leads", operator.ready)
    empty = operator.memory("VmRSS")
    audit = Audit(audit_log)
    audit.new()
    watches = [ReadyWatch(plane, "meters"), ReadyWatch(plane, "customers")]
    total = arguments.meters + arguments.customers

    def all_ready():
        operator.alive()
        broken = [watch.failed for watch in watches if watch.failed]
        if broken:
            raise Failed(f"the watch of this benchmark broke off: {broken}")
        return sum(len(watch.ready) for watch in watches) == total

    say(f"kubectl apply of {arguments.meters} Meters and {arguments.customers} Customers in {arguments.namespaces} namespaces")
    begin = time.monotonic()
    run("apply", "-f", folder / "manifests", timeout=STEP_SECONDS)
    applied = time.monotonic() - begin
    ready_at_end = sum(len(watch.ready) for watch in watches)
    after = wait("all are Ready", all_ready, lambda: f"({sum(len(watch.ready) for watch in watches)} of {total})")
    say(f"applied in {applied:.1f} s, all Ready {after:.1f} s later")
    audit.quiet()
    calls = audit.all
    peak = operator.memory("VmHWM")

    say(f"an idle operator, for {arguments.idle_seconds} s")
    audit.new()
    queries = clickhouse.statements()
    time.sleep(arguments.idle_seconds)
    idle = audit.new()
    idle_queries = [now - before for now, before in zip(clickhouse.statements(), queries)]
    resident = operator.memory("VmRSS")

    say("a restart of the operator")
    operator.stop()
    audit.new()
    audit.all = collections.Counter()
    before = clickhouse.statements()
    begin = time.monotonic()
    operator = start(Operator, folder, clickhouse.url, plane["kubeconfig"])
    wait("it leads", operator.ready)
    leads = time.monotonic() - begin
    wait("it has looked at all", lambda: operator.reconciled() >= total, lambda: f"({operator.reconciled()} of {total})")
    reread = time.monotonic() - begin
    audit.quiet()
    reads, ddl = (now - old for now, old in zip(clickhouse.statements(), before))
    writes = {call: count for call, count in audit.all.items() if not reading(call)}
    if not all_ready():
        raise Failed("after the restart not all are Ready")

    unexpected = {call: count for call, count in idle.items() if not expected(call)}
    rows = [
        ("all Ready after the end of `kubectl apply`", f"{after:.1f} s", "≤ 60 s", after <= 60),
        ("`kubectl apply` itself", f"{applied:.1f} s, after which {ready_at_end:,} of {total:,} were Ready", "", True),
        ("the operator's calls to the API server until then", listed(calls), "", True),
        ("the operator's memory, resident: at its peak", f"{peak:.0f} MiB", "≤ 64 MiB", peak <= 64),
        ("the same, with no objects, and idle with all", f"{empty:.0f} MiB, {resident:.0f} MiB", "", True),
        (f"its calls in {arguments.idle_seconds} idle seconds", listed(idle), "only the lease and watches", not unexpected),
        ("statements to ClickHouse meanwhile", f"{idle_queries[0] - 1} reads, {idle_queries[1]} DDL", "", True),
        ("restart: leads, and has looked at all", f"{leads:.1f} s, {reread:.1f} s", "", True),
        ("restart: its memory at the peak", f"{operator.memory('VmHWM'):.0f} MiB", "≤ 64 MiB", operator.memory("VmHWM") <= 64),
        ("restart: statements to ClickHouse", f"{reads - 1:,} reads, {ddl} DDL", "no DDL", ddl == 0),
        ("restart: writes to the API server but the lease", listed(writes) or "none", "none", not writes),
    ]
    return rows


def reading(call):
    return call.split(" ")[0] in ("get", "list", "watch") or call.endswith(" leases")


def listed(calls):
    return ", ".join(f"{count:,} {call}" for call, count in sorted(calls.items()))


def machine():
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in cpus if line.startswith("model name")), platform.machine())
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / (1 << 20)
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB of memory"


def report(arguments, rows, load):
    figures = [f"| {what} | {figure} | {aim}{'' if met else ' **missed**'} |" for what, figure, aim, met in rows]
    return "\n".join(
        [
            f"- {machine()}; API server, etcd, ClickHouse and kubectl run on it, too",
            f"- load average before: {load}",
            f"- {datetime.date.today()}, kubemeter {parts.VERSION} ({PROFILE} build), Kubernetes {parts.module_version('k8s.io/kubernetes')[1:]}",
            f"- {arguments.meters:,} Meters, each of an event type of its own, and {arguments.customers:,} Customers in {arguments.namespaces} namespaces",
            "",
            "| figure | measured | aim |",
            "|---|---|---|",
            *figures,
            "",
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meters", type=int, default=1000)
    parser.add_argument("--customers", type=int, default=1000)
    parser.add_argument("--namespaces", type=int, default=20)
    parser.add_argument("--idle-seconds", type=int, default=60)
    parser.add_argument("--write", action="store_true", help=f"put the result into {DOCUMENT.relative_to(parts.ROOT)}")
    arguments = parser.parse_args()

    def end(number, _):
        raise Failed(f"not done within {LIMIT_SECONDS} s" if number == signal.SIGALRM else "ended by a signal")

    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    signal.alarm(LIMIT_SECONDS)
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    folder = Path(tempfile.mkdtemp(prefix="kubemeter-bench-operator-"))
    try:
        with contextlib.ExitStack() as stack:
            rows = measure(arguments, folder, stack)
    except (Failed, OSError, subprocess.SubprocessError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = report(arguments, rows, load)
    print(text)
    if arguments.write:
        before, rest = DOCUMENT.read_text().split(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}")
    return 0 if all(met for *_, met in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
