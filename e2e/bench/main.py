"""The benchmarks of the operator on the cluster that is up. Prints the lines of docs/benchmarks.md, and writes all
numbers to target/bench/results.json. `e2e/bench/run` starts it."""
import json
import os
import pathlib
import sys
import time

import cluster
import operator_side
import paths
from report import report

ROUNDS = int(os.environ.get("ROUNDS", 3))
SECONDS = float(os.environ.get("SECONDS_EACH", 1))
MANY = int(os.environ.get("SANDBOXES", 1000))
HERE = pathlib.Path(__file__).parent
OUT = HERE.parent.parent / "target" / "bench"


def note(what, found):
    print(f"{time.strftime('%T')}  {what}: {json.dumps(found)}", file=sys.stderr, flush=True)


def clean():
    """The namespace of an earlier run, and of this one."""
    path = f"/api/v1/namespaces/{cluster.NAMESPACE}"
    if cluster.api("GET", path):
        cluster.api("DELETE", cluster.SANDBOXES)
        cluster.wait(180, "the sandboxes to be gone", lambda: not cluster.api("GET", cluster.SANDBOXES)["items"])
        cluster.api("DELETE", path)
        cluster.wait(180, "the namespace to be gone", lambda: cluster.api("GET", path) is None)


def measure(parts, found):
    image = os.environ["BENCH_IMAGE"]
    cluster.api("POST", "/api/v1/namespaces", {"metadata": {"name": cluster.NAMESPACE}})
    account = f"/api/v1/namespaces/{cluster.NAMESPACE}/serviceaccounts/default"
    cluster.wait(30, "the service account", lambda: cluster.api("GET", account))
    # First: what had much to do once keeps some of the memory.
    if "many" in parts:
        found["many"] = operator_side.thousand(image, MANY, note)
        found["many"]["number"] = MANY
    if {"paths", "tunnels"} & parts:
        ways = paths.Paths(image, (HERE / "squid.conf").read_text(), note)
        time.sleep(2)
        found["sidecar"] = ways.sidecar.memory()
        if "paths" in parts:
            found["paths"] = ways.all(ROUNDS, SECONDS)
        if "tunnels" in parts:
            found["tunnels"] = ways.tunnels(1000)
        cluster.api("DELETE", f"{cluster.SANDBOXES}/paths")
    if "starts" in parts:
        found["starts"] = operator_side.starts(image, ROUNDS)
        note("starts", found["starts"])
    if "changes" in parts:
        found["changes"] = operator_side.changes(image, ROUNDS)
        note("changes", found["changes"])


def main():
    parts = set(sys.argv[1:] or ["paths", "tunnels", "starts", "changes", "many"])
    found = {}
    cluster.start_proxy()
    try:
        clean()
        measure(parts, found)
    finally:
        # What was found is worth something, also where the rest failed.
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / "results.json").write_text(json.dumps(found, indent=1) + "\n")
        report(found)
        clean()
        cluster.stop_proxy()


main()
