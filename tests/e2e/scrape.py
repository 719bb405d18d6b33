"""A real Prometheus beside the cluster, which scrapes both containers of the release's pods."""

import contextlib
import json
import subprocess
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

import cluster
from cluster import NAMESPACE, Failed, get, say, until

ALERTS = Path(__file__).resolve().parents[2] / "charts" / "kubemeter" / "files" / "alerts.yaml"
ADDRESS = "127.0.0.1:9095"
# Whatever proxy the environment names knows nothing of this network.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def configuration(pods):
    """Each of both containers. By the pods' addresses: Debian's Prometheus can't ask the API server for them."""
    ports = {"gateway": 8080, "operator": 8081}
    targets = [
        {"targets": [f"{pod['status']['podIP']}:{port}"], "labels": {"namespace": NAMESPACE, "pod": pod["metadata"]["name"], "container": name}}
        for pod in pods
        for name, port in ports.items()
    ]
    # JSON is YAML.
    times = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    job = {"job_name": "kubemeter", "static_configs": targets}
    return json.dumps({"global": times, "rule_files": [str(ALERTS)], "scrape_configs": [job]})


def ask(path, **query):
    url = f"http://{ADDRESS}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    try:
        with DIRECT.open(url, timeout=5) as answer:
            return json.load(answer)["data"]
    except OSError as error:
        raise Failed(f"{url}: {error}") from error


def value(expression):
    return float(ask("query", query=expression)["result"][0]["value"][1])


@contextlib.contextmanager
def prometheus(pods):
    program = cluster.parts.tool("prometheus")
    if not program:
        raise Failed("prometheus is missing: run `make setup-kubernetes`")
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        file = Path(folder) / "prometheus.yaml"
        file.write_text(configuration(pods))
        command = [program, f"--config.file={file}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={ADDRESS}"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield
        except Exception:
            log.seek(0)
            say(f"Prometheus says: {log.read()[-2000:]}")
            raise
        finally:
            process.kill()
            process.wait()


def scraped():
    """Each pod is scraped at both containers, and all alerts can be evaluated."""
    chosen = get("pods", "--selector=app.kubernetes.io/component=metering", namespace=NAMESPACE)["items"]
    pods = len(chosen)
    with prometheus(chosen):
        for container in ("gateway", "operator"):
            up = f'count(up{{container="{container}"}} == 1)'
            until(f"{pods} containers {container} are scraped", lambda up=up: value(up) == pods)
        until("accepted events are seen", lambda: value('sum(kubemeter_events_accepted_total{container="gateway"})') > 0)
        until("one operator leads", lambda: value('sum(kubemeter_leading{container="operator"})') == 1)
        until("Ready Meters are seen", lambda: value('sum(kubemeter_objects{kind="Meter", ready="True"})') >= 3)
        until("gateways and the leader hear the API server", lambda: value("count(kubemeter_watch_age_seconds < 300)") == 2 * (pods + 1))

        def evaluated():
            rules = ask("rules")["groups"][0]["rules"]
            return rules if all(rule["health"] == "ok" for rule in rules) else None

        rules, _ = until("all alerts can be evaluated", evaluated)
    say(f"a Prometheus scrapes both containers of {pods} pods; {len(rules)} alerts are evaluated")
