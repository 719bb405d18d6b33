#!/usr/bin/env python3
"""Enforces NetworkPolicies on the node's bridge by iptables: policies.py KUBECONFIG.

A stand-in: no enforcer that others use can be built here. It knows what Kubemeter's chart writes and a test needs (selectors by
labels, ports by name or number, TCP), and ends with an error at anything else rather than to let it pass as enforced. What the
node itself sends, such as a kubelet's probes, is let through, as Kubernetes asks for.
"""

import base64
import http.client
import json
import ssl
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

CHAIN = "NETWORK-POLICIES"
GOES_ON = "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
SECONDS = 0.3


class Unknown(Exception):
    pass


def known(thing, *keys):
    if unknown := set(thing) - set(keys):
        raise Unknown(f"not known here: {sorted(unknown)} of {json.dumps(thing)}")
    return thing


def selects(selector, labels):
    wanted = known(selector, "matchLabels").get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items())


class Cluster:
    """Pods with addresses of their own, namespaces and policies, as they are at one time."""

    def __init__(self, pods, namespaces, policies):
        self.pods = [pod for pod in pods if pod["status"].get("podIP") and not pod["spec"].get("hostNetwork")]
        self.pods = [pod for pod in self.pods if pod["status"].get("phase") not in ("Succeeded", "Failed")]
        self.labels = {one["metadata"]["name"]: one["metadata"].get("labels", {}) for one in namespaces}
        self.policies = policies

    def peer(self, peer, namespace):
        """The addresses of a peer of a policy in this namespace."""
        known(peer, "podSelector", "namespaceSelector")
        for pod in self.pods:
            where = pod["metadata"]["namespace"]
            there = selects(peer["namespaceSelector"], self.labels.get(where, {})) if "namespaceSelector" in peer else where == namespace
            if there and selects(peer.get("podSelector", {}), pod["metadata"].get("labels", {})):
                yield pod["status"]["podIP"]

    def rules(self):
        """What iptables-restore takes: established connections go on, then each pod that a policy chooses has its own rules."""
        yield GOES_ON
        for pod in self.pods:
            metadata, address = pod["metadata"], pod["status"]["podIP"]
            chosen = [one for one in self.policies if one["metadata"]["namespace"] == metadata["namespace"]]
            chosen = [known(one["spec"], "podSelector", "policyTypes", "ingress", "egress") for one in chosen]
            chosen = [spec for spec in chosen if selects(spec["podSelector"], metadata.get("labels", {}))]
            arriving = [spec for spec in chosen if "Ingress" in spec["policyTypes"]]
            for rule in (rule for spec in arriving for rule in spec.get("ingress") or []):
                known(rule, "from", "ports")
                callers = [f"-s {source} " for peer in rule["from"] for source in self.peer(peer, metadata["namespace"])] if rule.get("from") else [""]
                for port in ports(rule, pod):
                    yield from (f"{caller}-d {address}{port} -j {CHAIN}-OUT" for caller in callers)
            if arriving:
                yield f"-d {address} -j DROP"
        for pod in self.pods:
            yield f"-d {pod['status']['podIP']} -j {CHAIN}-OUT"

    def rules_out(self):
        """What comes here may arrive, but perhaps not leave."""
        yield GOES_ON
        for pod in self.pods:
            for one in self.policies:
                same = one["metadata"]["namespace"] == pod["metadata"]["namespace"]
                if same and "Egress" in one["spec"]["policyTypes"] and selects(one["spec"]["podSelector"], pod["metadata"].get("labels", {})):
                    if one["spec"].get("egress"):
                        raise Unknown("rules for what is let out")
                    yield f"-s {pod['status']['podIP']} -j DROP"
        yield "-j ACCEPT"


def ports(rule, pod):
    """Matches for the ports of a rule: those of this pod, where a name stands for one."""
    if "ports" not in rule:
        return [""]
    names = {port.get("name"): port["containerPort"] for one in pod["spec"]["containers"] for port in one.get("ports", [])}
    found = [known(port, "port", "protocol") for port in rule["ports"]]
    if any(port.get("protocol", "TCP") != "TCP" for port in found):
        raise Unknown(f"ports {found}")
    numbers = [names.get(port["port"]) if isinstance(port["port"], str) else port["port"] for port in found]
    return [f" -p tcp --dport {number}" for number in numbers if number]


def restore(lines):
    subprocess.run(["iptables-restore", "--noflush", "--wait"], input="\n".join(lines) + "\n", text=True, check=True)


def main():
    config = json.loads(Path(sys.argv[1]).read_text())  # as control_plane.py writes it
    cluster, token = config["clusters"][0]["cluster"], config["users"][0]["user"]["token"]
    url, ca = urllib.parse.urlsplit(cluster["server"]), base64.b64decode(cluster["certificate-authority-data"]).decode()
    api = http.client.HTTPSConnection(url.hostname, url.port, timeout=10, context=ssl.create_default_context(cadata=ca))

    def items(path):
        api.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        answer = api.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise OSError(f"{path}: {answer.status} {body[:200]}")
        return json.loads(body)["items"]

    before = None
    while True:
        now = Cluster(items("/api/v1/pods"), items("/api/v1/namespaces"), items("/apis/networking.k8s.io/v1/networkpolicies"))
        rules = [f"-A {CHAIN} {rule}" for rule in now.rules()] + [f"-A {CHAIN}-OUT {rule}" for rule in now.rules_out()]
        if rules != before:
            # Both chains are emptied and filled in one step.
            restore(["*filter", f":{CHAIN} - [0:0]", f":{CHAIN}-OUT - [0:0]", *rules, "COMMIT"])
            if before is None:
                # What pods send to the node is not forwarded.
                for chain, jump in (("FORWARD", CHAIN), ("INPUT", f"{CHAIN}-OUT")):
                    subprocess.run(["iptables", "--wait", "--insert", chain, "--in-interface", "cni0", "--jump", jump], check=True)
            before = rules
        time.sleep(SECONDS)


if __name__ == "__main__":
    main()
