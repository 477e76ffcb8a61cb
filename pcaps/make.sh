#!/usr/bin/env bash
# Makes the captures in this folder anew: real traffic between two containers on two hosts, all of them network
# namespaces, over the Linux kernel's bridge and VXLAN. Needs root, ip, bridge, ethtool, ping, tcpdump, editcap,
# socat and scapy.
# Every namespace carries the process id in its name and is removed at the end, however that comes.
set -euo pipefail
cd "$(dirname "$0")"

id=weft-pcaps-$$
work=$(mktemp -d)
cleanup() {
  local running
  running=$(jobs -pr)
  # shellcheck disable=SC2086 # one word a process
  [ -z "$running" ] || kill $running 2>/dev/null || true
  for name in hostA hostB conA conB; do ip netns delete "$id-$name" 2>/dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

in_ns() { local name=$1; shift; ip netns exec "$id-$name" "$@"; }

# Two hosts joined by a cable, and on each a bridge with a VXLAN port and a container. $1 4 or 6: what is outside.
build() {
  local outside=$1 side addressA addressB
  if [ "$outside" = 4 ]; then addressA=192.168.50.1/24 addressB=192.168.50.2/24
  else addressA=fd00:50::1/64 addressB=fd00:50::2/64; fi
  for name in hostA hostB conA conB; do
    ip netns add "$id-$name"
    in_ns "$name" ip link set lo up
  done
  ip link add under0 mtu 1600 netns "$id-hostA" address 02:00:00:00:50:01 type veth \
    peer name under0 mtu 1600 netns "$id-hostB" address 02:00:00:00:50:02
  local nodad=()
  [ "$outside" = 4 ] || nodad=(nodad)
  in_ns hostA ip address add "$addressA" dev under0 "${nodad[@]}"
  in_ns hostB ip address add "$addressB" dev under0 "${nodad[@]}"
  for side in A B; do
    local local_end remote_end number
    if [ "$side" = A ]; then local_end=${addressA%/*} remote_end=${addressB%/*} number=1
    else local_end=${addressB%/*} remote_end=${addressA%/*} number=2; fi
    in_ns host$side ip link set under0 up
    in_ns host$side ip link add br0 type bridge mcast_snooping 0
    in_ns host$side ip link add vx0 type vxlan id 42 local "$local_end" remote "$remote_end" dstport 4789
    in_ns host$side ip link set vx0 mtu 1500 master br0 up
    ip link add eth0 netns "$id-con$side" address 02:42:0a:00:09:0$number type veth peer name to-con netns "$id-host$side"
    in_ns host$side ip link set to-con master br0 up
    in_ns host$side ip link set br0 up
    in_ns con$side ip address add 10.0.9.$number/24 dev eth0
    in_ns con$side ip address add fd00:9::$number/64 dev eth0 nodad
    # Otherwise super-frames and unfinished checksums would be captured, which no wire carries.
    in_ns con$side ethtool -K eth0 tx off tso off gso off gro off >/dev/null
    in_ns host$side ethtool -K to-con tx off tso off gso off gro off >/dev/null
    in_ns host$side ethtool -K under0 tx off tso off gso off gro off >/dev/null
    in_ns con$side ip link set eth0 up
  done
  sleep 2 # IPv6 on the new links settles
}

# capture NAMESPACE DEVICE FILE [tcpdump's words…] starts capturing; finish ends it.
capture() {
  local name=$1 device=$2 file=$3
  shift 3
  # Not through in_ns: the process to be ended must be tcpdump itself.
  ip netns exec "$id-$name" tcpdump -i "$device" --immediate-mode -U -s 0 -w "$work/$file" "$@" 2>"$work/talk" &
  capturing=$!
  for _ in $(seq 50); do grep -q listening "$work/talk" && return; sleep 0.1; done
  echo "tcpdump did not start: $(cat "$work/talk")" >&2
  exit 1
}
finish() {
  sleep 0.5
  kill -TERM "$capturing"
  wait "$capturing" || true
}
forget() { for side in A B; do in_ns con$side ip neigh flush dev eth0; done; }
transfer() {
  head -c 16384 /dev/urandom >"$work/payload"
  ip netns exec "$id-conB" socat -u TCP-LISTEN:8080,reuseaddr "OPEN:$work/received,creat,trunc" &
  local listener=$!
  sleep 0.5
  in_ns conA socat -u "OPEN:$work/payload" TCP:10.0.9.2:8080
  wait "$listener"
  cmp "$work/payload" "$work/received"
}

# Tagged stations out of scapy, since not every kernel has VLAN devices: 10.0.7.1 asks, 10.0.7.2 answers.
answer_tagged() {
  ip netns exec "$id-conB" /usr/bin/python3 - 2>/dev/null <<'END' &
from scapy.all import ARP, ICMP, IP, Dot1Q, Ether, sendp, sniff
def answer(asked):
    if Dot1Q not in asked or asked[Dot1Q].vlan != 7: return
    mac = "02:42:0a:00:09:02"
    head = Ether(src=mac, dst=asked.src) / Dot1Q(vlan=7)
    if ARP in asked and asked[ARP].op == 1:
        sendp(head / ARP(op=2, hwsrc=mac, psrc="10.0.7.2", hwdst=asked.src, pdst=asked[ARP].psrc), iface="eth0", verbose=False)
    elif ICMP in asked and asked[ICMP].type == 8:
        reply = IP(src="10.0.7.2", dst=asked[IP].src) / ICMP(type=0, id=asked[ICMP].id, seq=asked[ICMP].seq)
        sendp(head / reply / asked[ICMP].payload, iface="eth0", verbose=False)
sniff(iface="eth0", prn=answer, store=False)
END
  sleep 2
}
ping_tagged() {
  in_ns conA /usr/bin/python3 - 2>/dev/null <<'END'
import time
from scapy.all import ARP, ICMP, IP, Dot1Q, Ether, sendp
mac = "02:42:0a:00:09:01"
def tagged(to): return Ether(src=mac, dst=to) / Dot1Q(vlan=7)
sendp(tagged("ff:ff:ff:ff:ff:ff") / ARP(hwsrc=mac, psrc="10.0.7.1", pdst="10.0.7.2"), iface="eth0", verbose=False)
for seq in range(3):
    time.sleep(0.2)
    echo = IP(src="10.0.7.1", dst="10.0.7.2") / ICMP(id=7, seq=seq) / bytes(range(56))
    sendp(tagged("02:42:0a:00:09:02") / echo, iface="eth0", verbose=False)
END
}

build 4
forget
capture conA eth0 arp-ping.pcap
in_ns conA ping -q -c 3 -i 0.2 10.0.9.2 >/dev/null
in_ns conA ping -q -c 2 -i 0.2 -s 1400 10.0.9.2 >/dev/null
finish

forget
capture conB eth0 nd-ping6.pcap --time-stamp-precision=nano
in_ns conA ping -q -6 -c 3 -i 0.2 fd00:9::2 >/dev/null
in_ns conA ping -q -6 -c 2 -i 0.2 ff02::1%eth0 >/dev/null
finish

capture conA eth0 tcp.pcap
transfer
finish

answer_tagged
capture conA eth0 vlan-ping.pcap vlan 7
ping_tagged
finish

forget
capture hostA under0 underlay-ipv4.pcap
in_ns conA ping -q -c 3 -i 0.2 10.0.9.2 >/dev/null
in_ns conA ping -q -6 -c 2 -i 0.2 fd00:9::2 >/dev/null
ping_tagged
finish
for name in hostA hostB conA conB; do ip netns delete "$id-$name"; done

build 6
forget
capture hostB under0 underlay-ipv6.pcap
in_ns conA ping -q -c 3 -i 0.2 10.0.9.2 >/dev/null
transfer
finish

editcap -F pcapng "$work/nd-ping6.pcap" nd-ping6.pcapng
editcap -F pcapng "$work/underlay-ipv6.pcap" underlay-ipv6.pcapng
gzip -9 -n -c "$work/tcp.pcap" >tcp.pcap.gz
for name in arp-ping vlan-ping underlay-ipv4; do cp "$work/$name.pcap" .; done
chmod 644 ./*.pcap*
