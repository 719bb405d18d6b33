"""Gateways that speak TLS, with a Secret that is renewed as cert-manager would, and as many as an autoscaler wants."""

import base64
import http.client
import json
import socket
import ssl
import subprocess
import sys

import cluster
from cluster import HOST, NAMESPACE, SHOP, Failed, equal, get, kubectl, say, until

RIG = cluster.parts.ROOT / "tests" / "rig"
sys.path.insert(0, str(RIG))
import certificates  # noqa: E402

# Wide enough for every event that the load sends.
WHEN = "from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z"
SECRET = "gateway-tls"
# The kubelet looks at a pod's Secrets every 10 s here, with some jitter, and the gateway at its files every 5 s.
RENEWED_SECONDS = 120


def metrics_are_there():
    kubectl("apply", "--filename", RIG / "metrics-api.yaml")
    kubectl("wait", "--for=condition=Available", "apiservice/v1beta1.metrics.k8s.io", "--timeout=60s")
    until("the metrics of pods", lambda: json.loads(kubectl("get", "--raw=/apis/metrics.k8s.io/v1beta1/pods"))["items"])
    say("the metrics API knows what pods take")


class Gateways:
    """The release's gateways, whose CA is in a ConfigMap `gateway-ca` for those who call them."""

    def __init__(self, folder):
        self.folder, self.issued = folder, 0
        certificates.authority(folder, "the test's CA")
        self.trust = ssl.create_default_context(cafile=folder / "ca.crt")
        kubectl("create", "configmap", "gateway-ca", f"--from-file={folder / 'ca.crt'}")
        self.issue("create")

    def issue(self, verb):
        """Writes a new certificate into the Secret, in the form in which cert-manager does; its serial number is `now`."""
        self.issued += 1
        name = f"gateway-{self.issued}"
        certificates.issue(self.folder, name, HOST)
        self.now = certificates.serial(self.folder / f"{name}.crt")
        files = {"tls.crt": f"{name}.crt", "tls.key": f"{name}.key", "ca.crt": "ca.crt"}
        data = {key: base64.b64encode((self.folder / file).read_bytes()).decode() for key, file in files.items()}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "type": "kubernetes.io/tls", "data": data}
        kubectl(verb, "--filename=-", namespace=NAMESPACE, text=json.dumps(secret))

    def pods(self):
        """Those that are not on their way out."""
        found = get("pods", "--selector=app.kubernetes.io/component=metering", namespace=NAMESPACE)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def count(self):
        return len(self.pods())

    def started(self):
        """When each container of each pod was started."""
        statuses = {pod["metadata"]["name"]: pod["status"]["containerStatuses"] for pod in self.pods()}
        return {(pod, one["name"]): one["state"]["running"]["startedAt"] for pod, all_of in statuses.items() for one in all_of}

    def shown(self, pod):
        """The serial number of the certificate that a new connection to a pod is shown."""
        try:
            with socket.create_connection((pod["status"]["podIP"], 8080), timeout=5) as plain:
                with self.trust.wrap_socket(plain, server_hostname=HOST) as connection:
                    return str(int(connection.getpeercert()["serialNumber"], 16))
        except OSError as error:
            raise Failed(f"{pod['metadata']['name']}: {error}") from error

    def speak_only_tls(self):
        for pod in self.pods():
            equal("the certificate's serial number", self.shown(pod), self.now)
            plain = http.client.HTTPConnection(pod["status"]["podIP"], 8080, timeout=5)
            try:
                plain.request("GET", "/healthz")
                raise Failed(f"a gateway with TLS answers {plain.getresponse().status} without")
            except (OSError, http.client.HTTPException):
                pass  # the connection is closed, or what comes is no HTTP
            finally:
                plain.close()

    def renewed(self, load):
        """The Secret changes; each gateway shows the new certificate to new connections, and none is started anew."""
        before, started = self.now, self.started()
        equal("certificates that the load has seen", set(load.now()["shown"]), {before})
        self.issue("replace")

        def all_show_it():
            return all(self.shown(pod) == self.now for pod in self.pods())

        _, seconds = until("every gateway shows the new certificate", all_show_it, RENEWED_SECONDS)
        load.goes_on()  # what the load said last may be of before
        of_before = load.now()["shown"][before]
        load.goes_on()
        seen = load.now()["shown"]
        equal("connections that the old certificate was shown to since", seen[before] - of_before, 0)
        if not seen.get(self.now):
            raise Failed(f"the load was not shown the new certificate: {seen}")
        equal("when containers were started", self.started(), started)
        return f"shown by every gateway after {seconds:.0f} s, none started anew, {seen[self.now]} new connections with it"

    def autoscaler(self):
        return get("hpa", "kubemeter", namespace=NAMESPACE)["status"]

    def autoscaler_sees_cpu(self):
        """Per cent of the CPU that the gateways ask for; nothing while the autoscaler doesn't know."""
        status = self.autoscaler()
        active = [one["status"] for one in status.get("conditions") or [] if one["type"] == "ScalingActive"]
        metrics = status.get("currentMetrics") or []
        if active != ["True"] or not metrics:
            return None
        return metrics[0]["containerResource"]["current"].get("averageUtilization")

    def at_rest(self):
        """Whether the autoscaler knows what the gateways take, and wants no more than two."""
        return self.autoscaler_sees_cpu() is not None and self.autoscaler()["desiredReplicas"] == self.count() == 2


def grown(gateways):
    """The autoscaler wants a third gateway, which serves."""
    _, seconds = until("the autoscaler wants a third", lambda: gateways.autoscaler()["desiredReplicas"] == 3, 120)
    cpu = gateways.autoscaler_sees_cpu()

    def serve():
        return get("deployment", "kubemeter", namespace=NAMESPACE)["status"].get("readyReplicas") == 3

    until("three gateways serve", serve, 60)
    return f"a third was wanted after {seconds:.0f} s, at {cpu} % of the CPU that they ask for; it serves"


def policies_are_enforced(gateways):
    """Who is no caller by the chart's NetworkPolicies reaches nothing, and ClickHouse calls nobody."""
    cluster.answer_to_job("caller", "reader", f"/usage/llm-tokens?{WHEN}", authority="gateway-ca")
    pod = gateways.pods()[0]["status"]["podIP"]
    calls = {
        "stranger": ([f"-url=https://{HOST}:8080"], {}),
        "at-clickhouse": (["-url=http://kubemeter-clickhouse.metering:8123", "-path=/ping"], cluster.CALLER),
        "at-operator": ([f"-url=http://{pod}:8081", "-path=/metrics"], cluster.CALLER),
    }
    cluster.refused_jobs("reader", calls)
    process = cluster.processes("clickhouse")[0]
    call = f"import socket; socket.create_connection(({pod!r}, 8080), 3)"
    said = subprocess.run(["nsenter", f"--target={process}", "--net", sys.executable, "-c", call], capture_output=True, text=True, check=False)
    equal("how ClickHouse's call of a gateway ends", said.stderr.strip().rpartition("\n")[2], "TimeoutError: timed out")
    say("the chart's policies let a caller in, keep others from gateway, operator and ClickHouse, and let nothing out of ClickHouse")
