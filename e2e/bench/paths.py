"""The three ways out, with the same load from the same sandbox: directly, through the gateway, and through squid."""
import statistics
import time

from cluster import NAMESPACE, PODS, SANDBOXES, Container, api, load, load_in_background, of_the_operator, wait

ADDRESS, NAME = "203.0.113.10", "api.asbx.test"
ECHO, SOURCE, SINK = 7100, 7101, 7102
PORTS = [ECHO, SOURCE, SINK]
# Tunnels of one sandbox: its sidecar has no more.
TUNNELS = 250


def sandbox(name, image, egress):
    """A sandbox that waits for what is asked of it."""
    return {
        "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox", "metadata": {"name": name},
        "spec": {
            "image": image, "command": ["/usr/bin/load", "wait"], "timeout": "1h",
            "resources": {"cpu": "2", "memory": "256Mi", "pids": 128, "requests": {"cpu": "10m", "memory": "32Mi"}},
            "network": {"egress": egress},
        },
    }


BY_NAME = {"host": NAME, "ports": PORTS, "protocol": "TCP"}
BY_ADDRESS = {"cidr": f"{ADDRESS}/32", "ports": PORTS}
TO_SQUID = {"service": {"name": "squid"}, "ports": [3128]}


def squid(image, configuration):
    """Squid as a Pod with the gateway's limits, and the Service by which a rule names it."""
    labels = {"app": "squid"}
    api("POST", f"/api/v1/namespaces/{NAMESPACE}/configmaps", {"metadata": {"name": "squid"}, "data": {"squid.conf": configuration}})
    api("POST", f"/api/v1/namespaces/{NAMESPACE}/services", {"metadata": {"name": "squid"}, "spec": {"selector": labels, "ports": [{"port": 3128}]}})
    api("POST", PODS, {
        "metadata": {"name": "squid", "labels": labels},
        "spec": {
            "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsUser": 13, "runAsGroup": 13, "fsGroup": 13},
            "containers": [{
                "name": "squid", "image": image, "command": ["/usr/sbin/squid", "-N", "-f", "/conf/squid.conf"],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "2", "memory": "512Mi"}},
                "volumeMounts": [{"name": "conf", "mountPath": "/conf"}, {"name": "run", "mountPath": "/run/squid"}],
            }],
            "volumes": [{"name": "conf", "configMap": {"name": "squid"}}, {"name": "run", "emptyDir": {}}],
        },
    })


def running(name):
    """The Pod of a sandbox whose agent runs."""
    def probe():
        status = (api("GET", f"{SANDBOXES}/{name}") or {}).get("status", {})
        assert not status.get("outcome"), status
        return status.get("phase") == "Running" and status["podName"]
    return wait(120, f"sandbox {name} to run", probe)


class Paths:
    """What is measured, and the control groups that it costs."""

    def __init__(self, image, configuration, note):
        self.note, self.image = note, image
        squid(image, configuration)
        api("POST", SANDBOXES, sandbox("paths", image, [BY_NAME, BY_ADDRESS, TO_SQUID]))
        self.pod = running("paths")
        address = wait(60, "squid's address", lambda: api("GET", f"{PODS}/squid")["status"].get("podIP"))
        self.sidecar = Container(f"{PODS}/{self.pod}", "sidecar")
        self.gateways = of_the_operator("gateway")
        self.squid = Container(f"{PODS}/squid", "squid")
        self.ways = {
            "direct": (lambda port: ["-to", f"{ADDRESS}:{port}"], {}),
            "gateway": (lambda port: ["-to", f"{NAME}:{port}"], {"sidecar": [self.sidecar], "gateway": self.gateways}),
            "squid": (lambda port: ["-to", f"{NAME}:{port}", "-proxy", f"{address}:3128"], {"squid": [self.squid]}),
        }
        for way in self.ways:
            wait(60, way, lambda: self.answers(way))

    def answers(self, way):
        try:
            return load(self.pod, "connections", *self.ways[way][0](ECHO), "-seconds", 0.2)
        except RuntimeError:
            return None

    def run(self, mode, way, port, *words):
        """One measurement of one way, with the CPU that it cost."""
        arguments, groups = self.ways[way]
        before = {name: sum(c.cpu() for c in group) for name, group in groups.items()}
        result = load(self.pod, mode, *arguments(port), *words)
        result["cpu"] = {name: sum(c.cpu() for c in group) - before[name] for name, group in groups.items()}
        return result

    def all(self, rounds, seconds):
        """Every measurement `rounds` times, the ways in turn, so that a busy moment hits all; the medians."""
        plan = {
            # As an agent makes them: the gateway takes 50 a second of one sandbox.
            "new": ("connections", ECHO, "-pause", "20ms", "-seconds", 2 * seconds),
            # Short, because the ports of closed connections are not free for a minute.
            "new x1": ("connections", ECHO, "-seconds", seconds / 2),
            "new x16": ("connections", ECHO, "-workers", 16, "-seconds", seconds / 2),
            "kept": ("requests", ECHO, "-pause", "5ms", "-seconds", seconds),
            "kept x1": ("requests", ECHO, "-seconds", seconds),
            "kept x16": ("requests", ECHO, "-workers", 16, "-seconds", seconds),
            "down x1": ("streams", SOURCE, "-seconds", 2 * seconds),
            "down x4": ("streams", SOURCE, "-workers", 4, "-seconds", 2 * seconds),
            "up x1": ("streams", SINK, "-direction", "up", "-seconds", 2 * seconds),
            "up x4": ("streams", SINK, "-direction", "up", "-workers", 4, "-seconds", 2 * seconds),
        }
        found = {}
        for what, (mode, port, *words) in plan.items():
            runs = {way: [] for way in self.ways}
            for _ in range(rounds):
                for way in self.ways:
                    runs[way].append(self.run(mode, way, port, *words))
            found[what] = {way: median(results) for way, results in runs.items()}
            self.note(what, found[what])
        found["names"] = median([load(self.pod, "names", "-to", f"{NAME}:1", "-pause", "5ms", "-seconds", seconds) for _ in range(rounds)])
        return found

    def tunnels(self, count):
        """Memory at `count` open tunnels, and before."""
        names = [f"tunnels-{i}" for i in range(count // TUNNELS)]
        for name in names:
            api("POST", SANDBOXES, sandbox(name, self.image, [BY_NAME]))
        pods = [running(name) for name in names]
        sidecars = [Container(f"{PODS}/{pod}", "sidecar") for pod in pods]
        time.sleep(2)
        memory = lambda group: [container.memory() for container in group]
        before = {"sidecar": memory(sidecars), "gateway": memory(self.gateways), "squid": memory([self.squid])}
        held = [load_in_background(pod, "hold", "-to", f"{NAME}:{ECHO}", "-workers", TUNNELS, "-seconds", 20) for pod in pods]
        open_now = sum(said["held"] for _, said in held)
        after = {"sidecar": memory(sidecars), "gateway": memory(self.gateways)}
        through_squid, said = load_in_background(self.pod, "hold", *self.ways["squid"][0](ECHO), "-workers", count, "-seconds", 3)
        after["squid"] = memory([self.squid])
        for process, _ in [*held, (through_squid, said)]:
            process.terminate()
        assert open_now == len(names) * TUNNELS and said["held"] == count, (held, said)
        for name in names:
            api("DELETE", f"{SANDBOXES}/{name}")
        return {"tunnels": open_now, "before": before, "after": after}


def median(results):
    """The medians of every number."""
    first = results[0]
    if isinstance(first, dict):
        return {key: median([result[key] for result in results]) for key in first}
    return statistics.median(results) if isinstance(first, (int, float)) else first
