"""What the operator does: a sandbox's start, a changed rule, and a thousand sandboxes."""
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from cluster import PODS, SANDBOXES, api, load_in_background, mark, of_the_operator, wait, watch, writes_since
from paths import BY_ADDRESS, BY_NAME, ECHO, running, sandbox

OTHER_NAME, OTHER_ADDRESS = "other.asbx.test", "203.0.113.11"
MERGE = "application/merge-patch+json"


def memory(component):
    """The largest of the component's containers."""
    return max((container.memory() for container in of_the_operator(component)), key=lambda m: m["own"])


def gone(name):
    wait(60, f"{name} to be gone", lambda: api("GET", f"{SANDBOXES}/{name}") is None)


def starts(image, rounds):
    """Seconds from the creation of a sandbox to `Running`, with its image on the node."""
    took = []
    for number in range(rounds):
        name = f"start-{number}"
        began = time.time()
        version = api("POST", SANDBOXES, sandbox(name, image, [BY_NAME]))["metadata"]["resourceVersion"]
        for state in watch(SANDBOXES, name, version):
            if state.get("status", {}).get("phase") == "Running":
                break
        took.append(time.time() - began)
        api("DELETE", f"{SANDBOXES}/{name}")
        gone(name)
    return took


def changes(image, rounds):
    """Seconds from a change of a sandbox's rules until its agent notices, for rules that come and go."""
    base = [BY_NAME, BY_ADDRESS]
    api("POST", SANDBOXES, sandbox("changes", image, base))
    pod = running("changes")
    rules = {
        "host": (f"{OTHER_NAME}:{ECHO}", {"host": OTHER_NAME, "ports": [ECHO], "protocol": "TCP"}),
        "cidr": (f"{OTHER_ADDRESS}:{ECHO}", {"cidr": f"{OTHER_ADDRESS}/32", "ports": [ECHO]}),
    }
    found = {}
    for _ in range(rounds):
        for kind, (target, rule) in rules.items():
            for want, egress in (("open", [*base, rule]), ("closed", base)):
                process, _ = load_in_background(pod, "until", "-to", target, "-want", want, "-pause", "5ms", "-seconds", 20)
                # Until it has tried for a while.
                time.sleep(0.5)
                began = time.time_ns()
                api("PATCH", f"{SANDBOXES}/changes", {"spec": {"network": {"egress": egress}}}, MERGE)
                said = json.loads(process.stdout.readline())
                process.wait()
                if "at_ns" not in said:
                    raise RuntimeError(f"a {kind} rule was not {want}: {said}")
                found.setdefault(f"{kind} {want}", []).append((said["at_ns"] - began) / 1e9)
    api("DELETE", f"{SANDBOXES}/changes")
    gone("changes")
    return {what: statistics.median(times) for what, times in found.items()}


def count(path):
    """How many objects there are, without reading them all."""
    page = api("GET", f"{path}?limit=1")
    return len(page["items"]) + page["metadata"].get("remainingItemCount", 0)


def thousand(image, number, note):
    """Many sandboxes whose Pods fit on no node, to measure the operator and nothing else."""
    found = {"controller idle": memory("controller"), "gateway idle": memory("gateway")}
    start = mark()
    began = time.time()

    def create(index):
        one = sandbox(f"many-{index}", image, [BY_NAME, BY_ADDRESS])
        one["metadata"]["labels"] = {"bench": "many"}
        one["spec"].update({"startupTimeout": "24h", "resources": {"cpu": "500"}})
        api("POST", SANDBOXES, one)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(create, range(number)))
    found["created s"] = time.time() - began
    wait(300, "all Pods", lambda: count(PODS) >= number)
    found["all have Pods s"] = time.time() - began
    note("created", found)
    time.sleep(5)
    found["controller"], found["gateway"] = memory("controller"), memory("gateway")
    found["writes"] = writes_since(start)
    start, began = mark(), time.time()
    api("DELETE", f"{SANDBOXES}?labelSelector=bench%3Dmany")
    wait(300, "all to be gone", lambda: count(SANDBOXES) == 0 and count(PODS) == 0)
    found["all gone s"] = time.time() - began
    found["writes of the end"] = writes_since(start)
    return found
