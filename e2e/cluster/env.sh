# Names, addresses and small functions of the cluster scripts; sourced.
# PREFIX names the cluster (default asbx), INDEX 0..31 keeps several apart.
# shellcheck shell=bash disable=SC2034
OUT=${OUT:-${XDG_CACHE_HOME:-$HOME/.cache}/agentsandbox-cluster}
B=$OUT/bin
PREFIX=${PREFIX:-asbx}
S=/run/$PREFIX             # state: pids, logs, keys, sockets
R=$OUT/root-$PREFIX        # what needs a disk: etcd, images, volumes, Pod logs
NODE=$PREFIX-node NET=$PREFIX-net LOG=$S/log PKI=$S/pki
NODE_IP=192.0.2.10 WORLD_IP=192.0.2.1 # TEST-NET-1: the node's uplink and its router, the "Internet"
HOST_IP=192.0.2.$((129 + 4 * ${INDEX:-0})) MGMT_IP=192.0.2.$((130 + 4 * ${INDEX:-0})) # the machine's own way to the node
WORLD_IPS="203.0.113.10 203.0.113.11 203.0.113.12 198.51.100.10"
POD_CIDR=10.244.0.0/16 SVC_CIDR=10.96.0.0/16
REGISTRY=$MGMT_IP:5000 REGISTRY_NAME=registry.$PREFIX.test
export -n REGISTRY REGISTRY_NAME # the caller's own may be exported; what is called from here is to find neither

say() { printf '%s  %s\n' "$(date +%T)" "$*"; }
# ours PID: whether the process is one of this cluster's. A pid file may outlive its process, and the number be reused.
ours() {
  local c
  c=$({ tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null) || return 1
  [[ $c == *"$S/"* || $c == *"$R/"* ]]
}
alive() { [ -s "$S/$1.pid" ] && ours "$(cat "$S/$1.pid")"; }
# run NAME NETNS COMMAND...: a daemon in a network namespace; its pid, its command and its log are kept.
run() {
  local name=$1 ns=$2
  shift 2
  alive "$name" && return
  printf '%q ' "$name" "$ns" "$@" >"$S/$name.cmd"
  setsid nsenter --net="/run/netns/$ns" "$@" >>"$LOG/$name.log" 2>&1 </dev/null 9>&- &
  echo $! >"$S/$name.pid"
}
# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local t=$1 what=$2 f
  shift 2
  for ((i = 0; i < t * 4; i++)); do
    "$@" >/dev/null 2>&1 && return
    sleep .25
  done
  echo "timed out after $t s waiting for $what" >&2
  for f in "$LOG"/*.log; do
    echo "== ${f##*/}" >&2
    tail -n 6 "$f" | cut -c1-300 >&2
  done
  exit 1
}
end() {
  local p
  if alive "$1"; then
    p=$(cat "$S/$1.pid")
    kill "$p" 2>/dev/null || true
    for _ in $(seq 40); do ours "$p" || break; sleep .1; done
    if ours "$p"; then kill -9 "$p" 2>/dev/null || true; fi
  fi
  rm -f "$S/$1.pid"
}
# put NAME VALUE: set one variable in the file of settings that the tests read.
put() {
  touch "$S/env"
  { grep -v "^$1=" "$S/env" || true; printf '%s=%s\n' "$1" "$2"; } >"$S/env.new"
  mv "$S/env.new" "$S/env"
}
# settle: forget upgrades by Helm that were killed in the middle; it refuses every further one until somebody does.
settle() {
  "$B/kubectl" --kubeconfig "$S/admin.kubeconfig" -n "$SYSTEM_NS" delete secret --ignore-not-found \
    -l 'owner=helm,status in (pending-install,pending-upgrade,pending-rollback)' >/dev/null
}
