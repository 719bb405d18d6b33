#!/usr/bin/env python3
"""The end-to-end test: from `helm install` to the last byte removed, on the cluster of KUBECONFIG, under load and with
crashes. `make e2e` runs it beside a node of its own (tests/rig/node.py)."""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

import cluster
from cluster import NAMESPACE, SHOP, equal, get, helm, job_ended, kill, kubectl, say, until
from scrape import scraped
from secure import WHEN, Gateways, grown, metrics_are_there, policies_are_enforced

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "kubemeter"
VALUES = f"--values={Path(__file__).parent / 'values.yaml'}"
EVIDENCE = ROOT / ".node" / "logs" / "cluster"
LEASE = "kubemeter-operator"

# What the workloads may do: the least that they need.
RIGHTS = {
    "poster": {"resources": ["usageevents"], "verbs": ["create"]},
    "reader": {"resources": ["meters/usage"], "verbs": ["get"]},
}


def namespaces():
    for name in (NAMESPACE, SHOP):
        kubectl("create", "namespace", name)
        kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    for account, rule in RIGHTS.items():
        kubectl("create", "serviceaccount", account)
        api = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": account}}
        role = {**api, "kind": "Role", "rules": [{"apiGroups": ["kubemeter.io"], **rule}]}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account}
        subjects = [{"kind": "ServiceAccount", "name": account, "namespace": SHOP}]
        binding = {**api, "kind": "RoleBinding", "roleRef": reference, "subjects": subjects}
        for made in (role, binding):
            kubectl("create", "--filename=-", text=json.dumps(made))


def chart_before(folder):
    """The chart of the commit before its last change and that commit, when git has it and it takes this test's values."""
    git = ["git", "-c", "safe.directory=*", "-C", str(ROOT)]
    path = str(CHART.relative_to(ROOT))
    commits = subprocess.run([*git, "log", "--format=%h", "-2", "--", path], capture_output=True, text=True, check=False)
    if len(commits.stdout.split()) < 2:
        return None, "git has none"
    commit = commits.stdout.split()[1]
    archive = subprocess.run([*git, "archive", commit, path], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder)
    before = Path(folder) / path
    if subprocess.run(["helm", "template", "kubemeter", before, VALUES], capture_output=True, check=False).returncode:
        return None, f"that of {commit} does not take the values of this test"
    return before, f"that of {commit}"


def install():
    """Installs the chart of before and upgrades it to this one; revision 2 is this one, and nothing of the other runs on.

    The other's pods need not become ready: they would run this image, which may want more than the other gives it.
    """
    with tempfile.TemporaryDirectory() as folder:
        before, which = chart_before(folder)
        helm("install", before or CHART, VALUES, wait=False)
    helm("upgrade", CHART, VALUES)
    until("the pods of this chart alone", lambda: len(pods()) == 3)
    equal("restarts", [status["restartCount"] for pod in pods() for status in pod["status"]["containerStatuses"]], [0] * 5)
    say(f"installed, with ClickHouse in the cluster; the chart before: {which}")


def pods():
    return get("pods", namespace=NAMESPACE)["items"]


def examples():
    kubectl("apply", "--filename", ROOT / "examples")
    kubectl("wait", "--for=condition=Ready", "meters", "--all", "--timeout=60s")
    kubectl("wait", "--for=condition=Ready", "customers", "--all", "--timeout=60s")
    say("examples/ are Ready")


def helm_test():
    helm("test", "--timeout=120s")
    left = get("meters,customers,pods", "--selector=app.kubernetes.io/component=test", namespace=NAMESPACE)["items"]
    equal("what helm test leaves", [item["metadata"]["name"] for item in left], [])
    say("helm test: an event, sent twice, counts once and is taken back; nothing of it stays")


class Load:
    """A job that posts events until it is told to stop."""

    def __init__(self, name, *more, authority=None):
        self.name = name
        cluster.start_job(name, "poster", "post", f"-namespace={SHOP}", f"-source={name}", *more, authority=authority)
        until("the load has begun", lambda: self.now()["events"] > 1000)
        say(f"a job posts events with a token of its service account{', by TLS' if authority else ''}")

    def now(self):
        job_ended(self.name)
        return json.loads(kubectl("logs", f"job/{self.name}", "--tail=1"))

    def goes_on(self):
        """Waits until events are acknowledged again, and for some more."""
        start = self.now()["events"]
        until("events are acknowledged", lambda: self.now()["events"] > start + 1000)

    def stop(self):
        kubectl("exec", f"job/{self.name}", "--", "/client", "stop")
        until("the load has ended", lambda: job_ended(self.name))
        return self.now()


def under_load(load, what, action, gently=False):
    """Does something while events are posted, then waits until they are acknowledged as before.

    `gently`: no request may be refused meanwhile, or answered by an error.
    """
    before, start = load.now(), time.monotonic()
    note = action()
    load.goes_on()
    after = load.now()
    failed = after["failed"] - before["failed"]
    new = {key: count - before["failures"].get(key, 0) for key, count in after["failures"].items()}
    new = {key: count for key, count in new.items() if count}
    say(
        f"{what}{f' ({note})' if note else ''}: {time.monotonic() - start:.0f} s, {after['events'] - before['events']} events "
        f"acknowledged meanwhile, {failed} of {after['requests'] - before['requests']} requests failed {new or ''}"
    )
    if gently and failed:
        raise cluster.Failed(f"{what}: {failed} requests failed: {new}")


def healthy():
    kubectl("rollout", "status", "deployment/kubemeter", "--timeout=60s", namespace=NAMESPACE)
    kubectl("rollout", "status", "statefulset/kubemeter-clickhouse", "--timeout=60s", namespace=NAMESPACE)


def killed_gateway():
    kill("gateway")
    healthy()


def deleted_pod():
    name = next(pod["metadata"]["name"] for pod in pods() if "clickhouse" not in pod["metadata"]["name"])
    kubectl("delete", "pod", name, "--grace-period=0", "--force", namespace=NAMESPACE)
    healthy()


def leader():
    """The pod and process that lead; empty when none does."""
    return get("lease", LEASE, namespace=NAMESPACE)["spec"].get("holderIdentity") or ""


def killed_leader():
    """It can't give the lease back, and another one leads all the same."""

    def kill_it():
        old = leader()
        return kill("operator", old.rpartition("_")[0]) or old

    old, _ = until("a leader is there to be killed", kill_it)
    _, seconds = until("another operator leads", lambda: leader() not in (old, ""), 15)
    healthy()
    return f"another leads after {seconds:.1f} s"


def killed_clickhouse():
    kill("clickhouse")
    healthy()


def deleted_clickhouse():
    kubectl("delete", "pod", "kubemeter-clickhouse-0", "--grace-period=0", "--force", namespace=NAMESPACE)
    healthy()


def edited():
    """What the Meter extracts is another thing now: a new table is filled beside the old one."""
    kubectl("patch", "meter", "llm-tokens", "--type=merge", '--patch={"spec": {"groupBy": {"flow": "$.direction"}}}')

    def ready():
        meter = get("meter", "llm-tokens")
        conditions = {condition["type"]: condition for condition in meter["status"]["conditions"]}
        current = conditions["Ready"]["observedGeneration"] == meter["metadata"]["generation"] == 2
        return current and conditions["Ready"]["status"] == "True" and "Reconciling" not in conditions

    until("the edited Meter is Ready", ready)


def upgraded():
    helm("upgrade", CHART, VALUES, "--set=replicas=3", "--set=log.filter=info\\,kube=warn")
    equal("replicas", get("deployment", "kubemeter", namespace=NAMESPACE)["status"]["readyReplicas"], 3)


def rolled_back():
    helm("rollback", "2")
    equal("replicas", get("deployment", "kubemeter", namespace=NAMESPACE)["status"]["readyReplicas"], 2)


def usage(meter, authority=None):
    """Usage as another workload reads it: {customer: value}."""
    answer = cluster.answer_to_job("reader", "reader", f"/usage/{meter}?{WHEN}&groupBy=customer", authority)
    return {row["customer"]: row["value"] for row in answer["data"]}


def expected(events):
    """What the first `events` of the client are: {customer: (count, sum)}. Every one of them was acknowledged."""
    found = {}
    for number in range(events):
        customer = ("acme", "acme", "globex")[number % 3]
        count, total = found.get(customer, (0, 0))
        found[customer] = (count + 1, total + number % 10 + 1)
    return found


def totals_are_exact(sent):
    equal("rejected", sent["rejected"], 0)
    of = expected(sent["events"])
    equal("the client's own sum", sum(total for _, total in of.values()), sent["sum"])
    equal("usage of llm-tokens", usage("llm-tokens"), {customer: str(total) for customer, (_, total) in of.items()})
    # A Meter that is made after its events counts them as well.
    late = {"apiVersion": "kubemeter.io/v1alpha1", "kind": "Meter", "metadata": {"name": "late"}}
    late["spec"] = {"eventType": "llm.completion", "aggregation": "Count"}
    kubectl("apply", "--filename=-", text=json.dumps(late))
    kubectl("wait", "--for=condition=Ready", "meter/late", "--timeout=60s")
    equal("usage of a late Meter", usage("late"), {customer: str(count) for customer, (count, _) in of.items()})
    say(f"totals are exact: {sent['events']} events, {sent['sum']} tokens; {sent['again']} batches were sent twice on purpose")
    return of


def uninstalled_and_back(of):
    manifest = helm("get manifest")

    def there():
        get_names = ["get", "--ignore-not-found", "--output=name", "--filename=-"]
        return kubectl(*get_names, namespace=NAMESPACE, text=manifest).split()

    made = there()
    crds = [name for name in made if name.startswith("customresourcedefinition")]
    equal("CRDs of the release", len(crds), 2)
    helm("uninstall")
    until(f"the end of the {len(made) - 2} other objects of the release", lambda: there() == crds)
    equal("the volume", get("pvc", "data-kubemeter-clickhouse-0", namespace=NAMESPACE)["status"]["phase"], "Bound")
    equal("Meters", len(get("meters")["items"]), 4)
    equal("Customers", len(get("customers")["items"]), 3)
    say("uninstalled: CRDs, Meters, Customers and the volume stay, nothing else")
    helm("install", CHART, VALUES)
    equal("usage after all", usage("llm-tokens"), {customer: str(total) for customer, (_, total) in of.items()})
    say("installed again: usage is as it was")


def secured(of):
    """The release with TLS, NetworkPolicies and a HorizontalPodAutoscaler; `of`: what has been counted before."""
    metrics_are_there()
    with tempfile.TemporaryDirectory() as folder:
        gateways = Gateways(Path(folder))
        helm("upgrade", CHART, VALUES, f"--values={Path(__file__).parent / 'secured.yaml'}")
        gateways.speak_only_tls()
        helm_test()
        policies_are_enforced(gateways)
        until("the autoscaler is at rest", gateways.at_rest, 120)
        say(f"an autoscaler is content with two gateways, at {gateways.autoscaler_sees_cpu()} % of the CPU that they ask for")
        load = Load("secured", "-workers=8", "-newcomers=4", "-pause=10ms", "-batch=200", authority="gateway-ca")
        under_load(load, "more gateways", lambda: grown(gateways), gently=True)
        under_load(load, "a new certificate", lambda: gateways.renewed(load), gently=True)
    sent = load.stop()
    equal("rejected", sent["rejected"], 0)
    new = expected(sent["events"])
    totals = {customer: str(total + new[customer][1]) for customer, (_, total) in of.items()}
    equal("usage of llm-tokens", usage("llm-tokens", authority="gateway-ca"), totals)
    say(f"totals are exact: {sent['events']} events more, by TLS")


def removed():
    """What the chart's README says removes everything."""
    kubectl("delete", "meters,customers", "--all", "--timeout=60s")
    helm("uninstall")
    kubectl("delete", "crd", "meters.kubemeter.io", "customers.kubemeter.io", "--timeout=60s")
    kubectl("delete", "pvc", "data-kubemeter-clickhouse-0", "--timeout=60s", namespace=NAMESPACE)
    until("all pods are gone", lambda: not pods())
    say("removed: nothing is left")


def main():
    try:
        namespaces()
        install()
        examples()
        helm_test()
        load = Load("load")
        scraped()
        under_load(load, "a gateway killed", killed_gateway)
        under_load(load, "a pod deleted at once", deleted_pod)
        under_load(load, "the leading operator killed", killed_leader)
        under_load(load, "ClickHouse killed", killed_clickhouse)
        under_load(load, "ClickHouse's pod deleted at once", deleted_clickhouse)
        under_load(load, "a Meter edited", edited, gently=True)
        under_load(load, "helm upgrade", upgraded, gently=True)
        under_load(load, "helm rollback", rolled_back, gently=True)
        of = totals_are_exact(load.stop())
        uninstalled_and_back(of)
        secured(of)
        removed()
    except Exception as error:  # whatever it is: the evidence goes with the cluster
        say(f"failed: {type(error).__name__}: {error}")
        cluster.keep_evidence(EVIDENCE)
        return 1
    say("all of it passed")
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
