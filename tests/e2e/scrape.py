"""A real Prometheus beside the cluster: it finds the release's pods by the API server and scrapes both their containers."""

import contextlib
import json
import os
import subprocess
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

import cluster
from cluster import NAMESPACE, Failed, say, until

ALERTS = Path(__file__).resolve().parents[2] / "charts" / "kubemeter" / "files" / "alerts.yaml"
ADDRESS = "127.0.0.1:9095"


def configuration():
    pod = "__meta_kubernetes_pod"
    job = {
        "job_name": "kubemeter",
        "kubernetes_sd_configs": [
            {"role": "pod", "kubeconfig_file": os.environ["KUBECONFIG"], "namespaces": {"names": [NAMESPACE]}}
        ],
        "relabel_configs": [
            {"source_labels": [f"{pod}_label_app_kubernetes_io_component"], "regex": "metering", "action": "keep"},
            *(
                {"source_labels": [source], "target_label": label}
                for source, label in (
                    ("__meta_kubernetes_namespace", "namespace"),
                    (f"{pod}_name", "pod"),
                    (f"{pod}_container_name", "container"),
                )
            ),
        ],
    }
    # JSON is YAML.
    times = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    return json.dumps({"global": times, "rule_files": [str(ALERTS)], "scrape_configs": [job]})


def ask(path, **query):
    url = f"http://{ADDRESS}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)["data"]
    except OSError as error:
        raise Failed(f"{url}: {error}") from error


def value(expression):
    return float(ask("query", query=expression)["result"][0]["value"][1])


@contextlib.contextmanager
def prometheus():
    program = cluster.parts.tool("prometheus")
    if not program:
        raise Failed("prometheus is missing: run `make setup-kubernetes`")
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        file = Path(folder) / "prometheus.yaml"
        file.write_text(configuration())
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


def scraped(pods):
    """Each of `pods` is scraped at both containers, and all alerts can be evaluated."""
    with prometheus():
        for container in ("gateway", "operator"):
            up = f'count(up{{container="{container}"}} == 1)'
            until(f"{pods} containers {container} are scraped", lambda up=up: value(up) == pods)
        until("accepted events are seen", lambda: value('sum(kubemeter_events_accepted_total{container="gateway"})') > 0)
        until("one operator leads", lambda: value('sum(kubemeter_leading{container="operator"})') == 1)
        until("Ready Meters are seen", lambda: value('sum(kubemeter_objects{kind="Meter", ready="True"})') >= 3)
        until("gateways and the leader hear the API server", lambda: value("count(kubemeter_watch_age_seconds < 120)") == 2 * (pods + 1))

        def evaluated():
            rules = ask("rules")["groups"][0]["rules"]
            return rules if all(rule["health"] == "ok" for rule in rules) else None

        rules, _ = until("all alerts can be evaluated", evaluated)
    say(f"a Prometheus scrapes both containers of {pods} pods; {len(rules)} alerts are evaluated")
