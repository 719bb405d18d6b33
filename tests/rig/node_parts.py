"""The parts of the one-node cluster that `node.py` runs; this is only imported inside its namespaces."""

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import certificates
from control_plane import DEADLINE_SECONDS, ControlPlane, Failed, parts, write_secret

sys.path.insert(0, str(parts.ROOT / "scripts"))
import oci  # noqa: E402

NODE = "node"
BRIDGE, ADDRESS, PODS, SERVICES, DNS = "cni0", "10.88.0.1", "10.88.0.0/24", "10.0.0.0/24", "10.0.0.10"
CNI_PROGRAMS = "/usr/lib/cni"
IMAGES = {name: f"localhost/{name}:node" for name in ("pause", "coredns", "metrics-server")}
VOLUMES = 2
MANIFESTS = Path(__file__).parent / "node.yaml"


class Node(ControlPlane):
    address = ADDRESS
    controllers = ["*"]
    controller_flags = ["--horizontal-pod-autoscaler-sync-period=5s"]  # for 15 s, that of a test that need not wait
    more_flags = [
        "--authorization-mode=Node,RBAC",
        f"--advertise-address={ADDRESS}",
        "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP",  # no name server knows the node
    ]

    def __init__(self, state):
        super().__init__(state, 6443)
        self.node_binaries = parts.node()
        self.data = state / "data"
        self.users = {name: secrets.token_hex(16) for name in ("kubelet", "kube-proxy", "kube-scheduler")}

    def tokens(self):
        groups = {"kubelet": (f"system:node:{NODE}", ',"system:nodes"')}
        for name, token in self.users.items():
            user, group = groups.get(name, (f"system:{name}", ""))
            yield f"{token},{user},{user}{group}"
        yield from super().tokens()

    def start(self, images):
        self.data.mkdir()
        self.more_flags = [*self.more_flags, *self.front_proxy()]
        hide_the_machine(self.data)
        make_network()
        self.start_containerd()
        super().start()
        for name, token in self.users.items():
            self.write_kubeconfig(self.directory / f"{name}.kubeconfig", token)
        self.start_kubelet()
        self.start_proxy()
        self.spawn(
            "kube-scheduler",
            f"--kubeconfig={self.directory}/kube-scheduler.kubeconfig",
            "--leader-elect=false",
            "--secure-port=0",
            binaries=self.node_binaries,
        )
        self.spawn("policies.py", self.kubeconfig, binaries=Path(__file__).parent)
        self.load(*(self.image(name) for name in IMAGES), *images)
        self.wait_until("the cluster takes objects", "apply", "--filename", MANIFESTS)
        self.wait_until("it takes volumes", "apply", "--filename", self.volumes())
        self.wait_until("node is Ready", "wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=5s")
        self.wait_until(
            "DNS serves", "--namespace=kube-system", "rollout", "status", "deployment/coredns", "--timeout=5s"
        )

    def front_proxy(self):
        """Flags by which the API server shows who it is to the servers of other APIs: by a certificate of a CA for just that."""
        folder = self.directory / "front-proxy"
        folder.mkdir()
        certificates.authority(folder, "front-proxy-ca")
        certificates.issue(folder, "front-proxy-client")
        return [
            f"--requestheader-client-ca-file={folder}/ca.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={folder}/front-proxy-client.crt",
            f"--proxy-client-key-file={folder}/front-proxy-client.key",
        ]

    def start_containerd(self):
        config = self.directory / "containerd.toml"
        config.write_text(f"""
version = 3
root = '{self.data}/containerd'
state = '/run/containerd'
[plugins.'io.containerd.cri.v1.images']
use_local_image_pull = true
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{IMAGES["pause"]}'
[plugins.'io.containerd.cri.v1.runtime']
disable_apparmor = true
restrict_oom_score_adj = true # without CAP_SYS_RESOURCE no process can be made less likely to be killed
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['{CNI_PROGRAMS}']
conf_dir = '{self.directory}/cni'
[plugins.'io.containerd.nri.v1.nri']
disable = true
""")
        network = {
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": BRIDGE,
                    "isDefaultGateway": True,
                    "hairpinMode": True,
                    "ipam": {"type": "host-local", "subnet": PODS, "dataDir": f"{self.data}/addresses"},
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
        (self.directory / "cni").mkdir()
        (self.directory / "cni" / "pods.conflist").write_text(json.dumps(network))
        os.environ["PATH"] = f"{self.node_binaries}:{os.environ['PATH']}:/usr/sbin:/sbin"  # it looks for its shim there
        self.spawn("containerd", f"--config={config}", binaries=self.node_binaries)

    def start_kubelet(self):
        (self.directory / "resolv.conf").write_text("")
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            # Nobody else is on this network.
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "address": ADDRESS,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": "/kubemeter-node",
            "cgroupsPerQOS": True,
            "enforceNodeAllocatable": ["pods"],
            "failCgroupV1": False,
            "failSwapOn": False,
            "clusterDNS": [DNS],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "resolvConf": f"{self.directory}/resolv.conf",
            "imageGCHighThresholdPercent": 100,  # what is removed can't be pulled again
            "evictionHard": {"imagefs.available": "0%", "nodefs.available": "0%", "memory.available": "100Mi"},
            "oomScoreAdj": 0,
            "maxOpenFiles": 20000,
            "podLogsDir": f"{self.directory}/logs/pods",
            "volumePluginDir": f"{self.data}/volume-plugins",
            "syncFrequency": "10s",
        }
        path = self.directory / "kubelet.json"
        path.write_text(json.dumps(config))
        self.spawn(
            "kubelet",
            f"--config={path}",
            f"--kubeconfig={self.directory}/kubelet.kubeconfig",
            f"--root-dir={self.data}/kubelet",
            f"--hostname-override={NODE}",
            f"--node-ip={ADDRESS}",
            binaries=self.node_binaries,
        )

    def start_proxy(self):
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": f"{self.directory}/kube-proxy.kubeconfig"},
            "mode": "iptables",
            "clusterCIDR": PODS,
            "hostnameOverride": NODE,
            "nodePortAddresses": [PODS],
            # The limits of connection tracking are the machine's, not this namespace's.
            "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "oomScoreAdj": 0,
            "iptables": {"minSyncPeriod": "100ms"},
        }
        path = self.directory / "kube-proxy.json"
        path.write_text(json.dumps(config))
        self.spawn("kube-proxy", f"--config={path}", binaries=self.node_binaries)

    def image(self, name):
        """A tar with the image of one of our own static programs."""
        path = self.data / f"{name}.tar"
        config = {"Entrypoint": [f"/{name}"], "User": "65532:65532"}
        oci.write(path, IMAGES[name], {name: (self.node_binaries / name, 0o755)}, config, level=1)
        return path

    def volumes(self):
        """A file with volumes on the node's disk that the default storage class gives out."""
        expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}
        items = []
        for number in range(VOLUMES):
            folder = self.data / "volumes" / str(number)
            folder.mkdir(parents=True)
            spec = {
                "capacity": {"storage": "10Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "local",
                "local": {"path": str(folder)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}},
            }
            metadata = {"name": f"local-{number}"}
            items.append({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec})
        path = self.directory / "volumes.json"
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        return path

    def load(self, *tars):
        for tar in tars:
            command = [self.node_binaries / "ctr", "--namespace=k8s.io", "images", "import", tar]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Failed(f"{tar} could not be imported: {done.stderr}")

    def kubectl(self, *arguments):
        command = [parts.tool("kubectl"), "--kubeconfig", self.kubeconfig, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def wait_until(self, what, *arguments):
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (answer := self.kubectl(*arguments)).returncode:
            self.check_children()
            if time.monotonic() > deadline:
                raise Failed(f"{what}: not after {DEADLINE_SECONDS} s: {answer.stderr}")
            time.sleep(0.2)


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def hide_the_machine(data):
    """No other containerd, kubelet or CNI of this machine is seen, and nothing that ours write stays."""
    run("mount", "--make-rprivate", "/")
    for folder in ("/run", "/var/log", "/var/lib", "/opt"):
        run("mount", "-t", "tmpfs", "tmpfs", folder)
    run("hostname", NODE)


def make_network():
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{ADDRESS}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    # Without a default route the node itself would not know where a Service's address is; kube-proxy rewrites it.
    run("ip", "route", "add", SERVICES, "dev", BRIDGE)
    for name in ("net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables"):
        Path("/proc/sys", *name.split(".")).write_text("1")
