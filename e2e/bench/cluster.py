"""What the benchmarks ask of the cluster: the API through one `kubectl proxy`, commands in Pods, and control groups."""
import http.client
import json
import os
import pathlib
import subprocess
import threading
import time

KUBECTL = os.environ["KUBECTL"]
NAMESPACE = "bench"
SYSTEM = os.environ.get("SYSTEM_NS", "agentsandbox-system")
SANDBOXES = f"/apis/agentsandbox.dev/v1alpha1/namespaces/{NAMESPACE}/agentsandboxes"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"

_local = threading.local()
_proxy = {}


def start_proxy():
    """One for all: its socket answers as the administrator, without a handshake for each question."""
    process = subprocess.Popen([KUBECTL, "proxy", "--port=0"], stdout=subprocess.PIPE, text=True)
    _proxy.update(process=process, port=int(process.stdout.readline().rsplit(":", 1)[1]))


def stop_proxy():
    if _proxy:
        _proxy["process"].terminate()
        _proxy["process"].wait()


def connection():
    return http.client.HTTPConnection("127.0.0.1", _proxy["port"], timeout=60)


def api(method, path, body=None, kind="application/json"):
    if not hasattr(_local, "connection"):
        _local.connection = connection()
    try:
        _local.connection.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": kind})
        answer = _local.connection.getresponse()
        data = json.loads(answer.read() or "{}")
    except Exception:
        del _local.connection
        raise
    if answer.status >= 400 and not (answer.status == 404 and method in ("GET", "DELETE")):
        raise RuntimeError(f"{method} {path}: {answer.status} {data.get('message')}")
    return data if answer.status < 400 else None


def watch(path, name, version):
    """Every state of one object from `version` on."""
    line = connection()
    query = f"{path}?watch=1&fieldSelector=metadata.name={name}&resourceVersion={version}&timeoutSeconds=120"
    line.request("GET", query)
    for event in line.getresponse():
        yield json.loads(event)["object"]


def wait(seconds, what, probe):
    end = time.time() + seconds
    while time.time() < end:
        found = probe()
        if found:
            return found
        time.sleep(0.2)
    raise TimeoutError(f"{seconds} s were not enough for {what}")


def command(pod, *words):
    return [KUBECTL, "-n", NAMESPACE, "exec", pod, "-c", "agent", "--", "/usr/bin/load", *map(str, words)]


def load(pod, *words):
    """Runs the load in `pod` as the agent and answers its last line."""
    done = subprocess.run(command(pod, *words), capture_output=True, text=True, timeout=90)
    if done.returncode != 0:
        raise RuntimeError(f"load {words}: {done.stdout} {done.stderr}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    if result.get("errors") or "error" in result:
        raise RuntimeError(f"load {words}: {result}")
    return result


def load_in_background(pod, *words):
    """The same, after its first line, which says that it has begun."""
    process = subprocess.Popen(command(pod, *words), stdout=subprocess.PIPE, text=True)
    return process, json.loads(process.stdout.readline())


class Container:
    """The control group of one container, found by its Pod's UID and its ID."""

    def __init__(self, path, name):
        pod = wait(60, f"{name} of {path}", lambda: self._running(path, name))
        self.pod = pod["metadata"]["name"]
        status = pod["status"]
        states = status["containerStatuses"] + status.get("initContainerStatuses", [])
        number = next(s for s in states if s["name"] == name)["containerID"].rsplit("/", 1)[1]
        self.folders = {}
        for folder in pathlib.Path("/sys/fs/cgroup").glob(f"**/*pod{pod['metadata']['uid']}*/{number}"):
            self.folders[folder.parts[4]] = folder
        self.two = (pathlib.Path("/sys/fs/cgroup") / "cgroup.controllers").exists()
        if self.two:
            self.folders = dict.fromkeys(("memory", "cpuacct"), next(iter(self.folders.values())))

    @staticmethod
    def _running(path, name):
        pod = api("GET", path)
        states = pod and pod["status"].get("containerStatuses", []) + pod["status"].get("initContainerStatuses", [])
        return pod if any(s["name"] == name and "running" in s["state"] for s in states or []) else None

    def _numbers(self, folder, file):
        lines = (self.folders[folder] / file).read_text().splitlines()
        return {key: int(value) for key, value in (line.split() for line in lines)}

    def cpu(self):
        """Seconds of CPU since its start."""
        if self.two:
            return self._numbers("cpuacct", "cpu.stat")["usage_usec"] / 1e6
        return int((self.folders["cpuacct"] / "cpuacct.usage").read_text()) / 1e9

    def memory(self):
        """Bytes: all that counts on its limit, what is its own, and what its processes have mapped."""
        stat = self._numbers("memory", "memory.stat")
        current = "memory.current" if self.two else "memory.usage_in_bytes"
        resident = 0
        for process in (self.folders["memory"] / "cgroup.procs").read_text().split():
            for line in pathlib.Path(f"/proc/{process}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    resident += int(line.split()[1]) * 1024
        return {
            "current": int((self.folders["memory"] / current).read_text()),
            "own": stat["anon" if self.two else "rss"],
            "resident": resident,
        }


def of_the_operator(component):
    """The containers of the operator's Pods of one component."""
    selector = f"labelSelector=app.kubernetes.io%2Fcomponent={component}"
    pods = api("GET", f"/api/v1/namespaces/{SYSTEM}/pods?{selector}")["items"]
    alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return [
        Container(f"/api/v1/namespaces/{SYSTEM}/pods/{pod['metadata']['name']}", pod["spec"]["containers"][0]["name"])
        for pod in alive
    ]


def writes_since(mark):
    """Writes of the operator's since a length of the API server's audit log, without leases and events."""
    operator = f"system:serviceaccount:{SYSTEM}:"
    count = {}
    with open(os.environ["AUDIT_LOG"]) as log:
        log.seek(mark)
        for line in log:
            event = json.loads(line)
            what = (event.get("objectRef") or {}).get("resource")
            ours = event["user"].get("username", "").startswith(operator) and event["stage"] == "ResponseComplete"
            if ours and event["verb"] in ("create", "update", "patch", "delete") and what not in ("leases", "events", "tokenreviews", None):
                key = f"{event['verb']} {what}" + ("/status" if event["objectRef"].get("subresource") == "status" else "")
                count[key] = count.get(key, 0) + 1
    return count


def mark():
    return os.stat(os.environ["AUDIT_LOG"]).st_size
