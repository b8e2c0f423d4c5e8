# Two machines and a switch in network namespaces; sourced by simulate_cluster.sh, as root.
#   make_network      namespaces and cables: node0 is 10.0.0.1, node1 is 10.0.0.2, each on its eth0
#   on_node I CMD...  run a command as on machine nodeI, which it also takes for its name
#   unplug I, plug I  pull the cable between nodeI and the switch, and put it back
#   power_off I       kill -9 everything that runs on nodeI; its network stays
#   remove_network    end what still runs there and take all of it away
# Names carry this shell's number, so two simulations do not meet. Nothing is changed outside of the namespaces.

# What follows is put together without $(...): a signal that came while bash reads one would break its trap (bash 5.2).
NETWORK=imp_ds-$$

make_network() {
    local i name
    for name in switch node0 node1; do
        ip netns add "$NETWORK-$name"
        ip -n "$NETWORK-$name" link set lo up
        # one address for each machine: gloo takes the first that it finds on the interface
        ip netns exec "$NETWORK-$name" bash -c 'echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6' 2>/dev/null || true
    done
    ip -n "$NETWORK-switch" link add bridge type bridge
    ip -n "$NETWORK-switch" link set bridge up
    for i in 0 1; do
        ip link add eth0 netns "$NETWORK-node$i" type veth peer name port$i netns "$NETWORK-switch"
        ip -n "$NETWORK-node$i" address add 10.0.0.$((i + 1))/24 dev eth0
        ip -n "$NETWORK-node$i" link set eth0 up
        ip -n "$NETWORK-switch" link set port$i master bridge
        ip -n "$NETWORK-switch" link set port$i up
    done
}

on_node() {
    local name=node$1
    shift
    ip netns exec "$NETWORK-$name" unshare --uts bash -c 'hostname "$0" && exec "$@"' "$name" "$@"
}

# at the switch, as a cable is pulled: the machine keeps its address and its open connections
unplug() {
    ip -n "$NETWORK-switch" link set "port$1" down
}

plug() {
    ip -n "$NETWORK-switch" link set "port$1" up
}

power_off() {
    local left tries
    for tries in {1..50}; do
        left=$(ip netns pids "$NETWORK-node$1" 2>/dev/null) || return 0
        [[ -n $left ]] || return 0
        # shellcheck disable=SC2086  # one number a word
        kill -9 $left 2>/dev/null || true
        sleep 0.1
    done
    echo "still running on node$1 after kill -9: $left" >&2
    return 1
}

remove_network() {
    local i name
    for i in 0 1; do
        power_off "$i" || true
    done
    for name in node0 node1 switch; do
        ip netns delete "$NETWORK-$name" 2>/dev/null || true
    done
}
