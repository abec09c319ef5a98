#!/bin/bash
# A real S3 server to test against: Ceph's RADOS Gateway from Debian 12 packages, unpacked into a folder.
# It needs no root, no systemd and no configuration, listens on loopback only, and keeps its objects in memory.
#
#   rgw_server.sh install DIR        fetch and unpack the packages (61 MB to fetch, 230 MB on disk; apt-get update first)
#   rgw_server.sh start DIR [PORT]   a monitor, a storage daemon, a gateway; prints the AWS_* variables to use them
#   rgw_server.sh gateway-stop DIR   an outage: end the gateway; the objects stay
#   rgw_server.sh gateway-start DIR  and its end
#   rgw_server.sh stop DIR           end everything; the objects are gone
set -eu

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 64; }
[ $# -ge 2 ] || usage
command=$1
base=$(realpath -m "$2")
root=$base/root
run=$base/run
bin=$root/usr/bin
libraries=$root/usr/lib/x86_64-linux-gnu

packages=(
  radosgw ceph-mon ceph-osd ceph-base ceph-common
  python3-ceph-argparse python3-ceph-common python3-rados python3-cephfs python3-rbd python3-prettytable python3-wcwidth
  libcephfs2 librados2 libradosstriper1 librbd1 librgw2
  libaio1 libboost-context1.74.0 libboost-thread1.74.0 libdaxctl1 libdevmapper-event1.02.1 libfmt9 libfuse2
  libgoogle-perftools4 libibverbs1 libleveldb1d liblua5.3-0 liblvm2cmd2.03 libndctl6 libnl-3-200 libnl-route-3-200
  liboath0 libpmem1 librabbitmq4 librdmacm1 libsnappy1v5 libtcmalloc-minimal4
)

install_packages() {
  mkdir -p "$base/packages" "$root"
  cd "$base/packages"
  apt-get download "${packages[@]}"
  for package in *.deb; do dpkg-deb -x "$package" "$root"; done
  rm -rf "$base/packages"
}

use_unpacked() {
  export LD_LIBRARY_PATH=$libraries:$libraries/ceph:$root/lib/x86_64-linux-gnu
  export PYTHONPATH=$root/usr/lib/python3/dist-packages
  export CEPH_CONF=$run/ceph.conf
}

ceph() { timeout 20 /usr/bin/python3 "$bin/ceph" "$@" 2>>"$run/log/ceph.err"; }  # Debian's python: its bindings are compiled

# daemon NAME COMMAND...: in the background, with its process id and its output under the name
daemon() {
  local name=$1
  shift
  "$@" >"$run/log/$name.out" 2>&1 </dev/null &
  echo $! >"$run/$name.pid"
}

end() {
  local file=$run/$1.pid pid
  [ -f "$file" ] || return 0
  pid=$(cat "$file")
  rm -f "$file"
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.1; done
  kill -9 "$pid" 2>/dev/null || true
}

# Authentication stays on (cephx): the gateway hangs without it. The paths are those of the unpacked packages.
write_configuration() {
  local port=$1
  cat >"$CEPH_CONF" <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$((port + 1)),v1:127.0.0.1:$((port + 2))]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = $run/keyring
run dir = $run
admin socket = $run/\$name.asok
log file = $run/log/\$name.log
mon cluster log file = $run/log/cluster.log
plugin dir = $libraries/ceph
osd class dir = $libraries/rados-classes
erasure code dir = $libraries/ceph/erasure-code
mon data = $run/mon
mon data avail crit = 1
mon allow pool size one = true
mon max pg per osd = 2000
osd data = $run/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd memory target = 939524096
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd crush chooseleaf type = 0
rgw data = $run
rgw run sync thread = false
rgw enable usage log = false
rgw override bucket index max shards = 1
CONF
}

start_monitor() {
  local port=$1 fsid
  fsid=$(sed -n 's/^fsid = //p' "$CEPH_CONF")
  "$bin/monmaptool" --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$((port + 1)),v1:127.0.0.1:$((port + 2))]" \
    "$run/map" >/dev/null
  "$bin/ceph-authtool" --create-keyring "$run/keyring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
  "$bin/ceph-authtool" "$run/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' \
    --cap mgr 'allow *' >/dev/null
  "$bin/ceph-mon" --mkfs -i a --monmap "$run/map" --keyring "$run/keyring"
  daemon mon "$bin/ceph-mon" -f -i a
}

start_storage() {
  local uuid
  uuid=$(cat /proc/sys/kernel/random/uuid)
  for _ in $(seq 60); do ceph osd new "$uuid" >/dev/null && break; sleep 0.5; done
  ceph auth get-or-create osd.0 mon 'allow profile osd' osd 'allow *' >>"$run/keyring"
  "$bin/ceph-osd" -i 0 --mkfs --osd-uuid "$uuid" >"$run/log/mkfs.out" 2>&1
  daemon osd "$bin/ceph-osd" -f -i 0
  sleep 2
  ceph osd crush add osd.0 1.0 root=default host=h >/dev/null
}

start_gateway() {
  local port
  port=$(cat "$run/port")
  daemon gateway "$bin/radosgw" -f -n client.admin --rgw_frontends="beast endpoint=127.0.0.1:$port"
  for _ in $(seq 240); do
    curl -s -o /dev/null "http://127.0.0.1:$port" && return 0
    sleep 0.5
  done
  echo "the gateway does not answer; its output is $run/log/gateway.out" >&2
  return 1
}

case $command in
  install) install_packages ;;
  start)
    port=${3:-19003}
    rm -rf "$run"
    mkdir -p "$run/mon" "$run/osd" "$run/log"
    echo "$port" >"$run/port"
    use_unpacked
    write_configuration "$port"
    start_monitor "$port"
    start_storage
    timeout 120 "$bin/radosgw-admin" user create --uid tester --display-name tester --access-key testkey \
      --secret-key testsecret1 >"$run/log/user.out" 2>&1
    start_gateway
    echo "export AWS_ENDPOINT_URL=http://127.0.0.1:$port AWS_ACCESS_KEY_ID=testkey" \
      "AWS_SECRET_ACCESS_KEY=testsecret1 AWS_DEFAULT_REGION=us-east-1"
    ;;
  gateway-stop) end gateway ;;
  gateway-start) use_unpacked; start_gateway ;;
  stop) for name in gateway osd mon; do end "$name"; done ;;
  *) usage ;;
esac
