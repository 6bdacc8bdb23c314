"""The lines of docs/benchmarks.md."""
import statistics

MIB = 1 << 20
WAYS = ("direct", "gateway", "squid")


def line(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |")


def milliseconds(found, which="p50_us"):
    """The direct way's time, and what the others add."""
    direct = found["direct"][which] / 1000
    return [f"{direct:.2f} ms", *(f"{found[way][which] / 1000 - direct:+.2f} ms" for way in WAYS[1:])]


def ways(found):
    line("", *WAYS)
    line("---", "---", "---", "---")
    for name, key in (("new connection, 50 a second", "new"), ("kept connection, 200 requests a second", "kept")):
        line(f"{name}: p50", *milliseconds(found[key]))
        line(f"{name}: p99", *milliseconds(found[key], "p99_us"))
    for name, key in (("new connections a second", "new"), ("requests a second on kept connections", "kept")):
        for workers in (1, 16):
            line(f"{name}, {workers} at a time", *(f"{found[f'{key} x{workers}'][way]['per_second']:.0f}" for way in WAYS))
    for direction in ("down", "up"):
        for streams in (1, 4):
            each = found[f"{direction} x{streams}"]
            line(f"MB/s {direction}, streams: {streams}", *(f"{each[way]['mb_per_second']:.0f}" for way in WAYS))
    for direction in ("down", "up"):
        each, cells = found[f"{direction} x1"], ["0"]
        for way in WAYS[1:]:
            cpu = each[way]["cpu"]
            gigabytes = each[way]["bytes"] / 1e9
            cells.append(", ".join(f"{name} {seconds / gigabytes:.2f} s" for name, seconds in cpu.items()))
        line(f"CPU for a GB {direction}", *cells)


def mib(number):
    return f"{number / MIB:.1f} MiB"


def held(found):
    count = found["tunnels"]
    for who in ("sidecar", "gateway", "squid"):
        total = lambda when, what: sum(container[what] for container in found[when][who])
        # Of several sidecars each has its part of the tunnels.
        share = len(found["after"][who])
        grown = total("after", "own") - total("before", "own")
        line(
            f"memory of the {who} at {count // share if who == 'sidecar' else count} tunnels: its own, and with the kernel's",
            f"{mib(total('after', 'own') / share)}, {mib(total('after', 'current') / share)}; before {mib(total('before', 'own') / share)}, {mib(total('before', 'current') / share)}; {grown / count / 1024:.1f} KiB a tunnel",
        )


def report(found):
    if "paths" in found:
        ways(found["paths"])
        print()
    line("what", "measured")
    line("---", "---")
    if "paths" in found:
        line("the question for a name, p50", f"{found['paths']['names']['p50_us'] / 1000:.2f} ms")
    if "sidecar" in found:
        idle = found["sidecar"]
        line("sidecar, idle", f"{mib(idle['resident'])} resident, {mib(idle['own'])} of its own, {mib(idle['current'])} on its limit")
    if "tunnels" in found:
        held(found["tunnels"])
    if "starts" in found:
        line("created to running, image on the node", f"{statistics.median(found['starts']):.1f} s")
    for what, seconds in found.get("changes", {}).items():
        line(f"changed rule in force: {what}", f"{seconds * 1000:.0f} ms")
    if "many" in found:
        many = found["many"]
        for who in ("controller", "gateway"):
            idle, full = many[f"{who} idle"], many[who]
            line(
                f"{who}'s memory idle, and with {many['number']} sandboxes: its own, and on its limit",
                f"{mib(idle['own'])}, {mib(idle['current'])}; {mib(full['own'])}, {mib(full['current'])}",
            )
        line(f"{many['number']} sandboxes: created, all have Pods, all gone", f"{many['created s']:.0f} s, {many['all have Pods s']:.0f} s, {many['all gone s']:.0f} s")
        line("API writes for them: until all have Pods, and until all are gone", f"{sum(many['writes'].values())}, {sum(many['writes of the end'].values())}")
