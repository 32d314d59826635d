#!/bin/sh
# Lays out a host whose router redirects, and runs a command on it. To be run inside `unshare -rnm`.
#
#   namespace "client" 198.51.100.2 --- veth --- 198.51.100.1 this namespace: proxy and upstreams
#                   2001:db8:1::2                2001:db8:1::1
#   192.0.2.9, 192.0.2.10 and 2001:db8::9 are upstreams here; TCP that arrives for them is redirected to port 15001.
set -eu

mkdir -p /run/netns
mount -t tmpfs tmpfs /run/netns
ip link set lo up
ip address add 192.0.2.9/32 dev lo
ip address add 192.0.2.10/32 dev lo
ip -6 address add 2001:db8::9/128 dev lo nodad

ip netns add client
ip link add inside type veth peer name outside netns client
ip address add 198.51.100.1/24 dev inside
ip -6 address add 2001:db8:1::1/64 dev inside nodad
ip link set inside up
ip -n client link set lo up
ip -n client address add 198.51.100.2/24 dev outside
ip -n client -6 address add 2001:db8:1::2/64 dev outside nodad
ip -n client link set outside up
ip -n client route add default via 198.51.100.1
ip -n client -6 route add default via 2001:db8:1::1

# Other namespaces may share the lock of the tables, which is waited for.
iptables -w 60 -t nat -A PREROUTING -i inside -p tcp -j REDIRECT --to-ports 15001
ip6tables -w 60 -t nat -A PREROUTING -i inside -p tcp -j REDIRECT --to-ports 15001

exec "$@"
