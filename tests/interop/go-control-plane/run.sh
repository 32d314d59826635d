#!/bin/sh
# Runs the integration program of go-control-plane against a proxy.
#
# Usage: run.sh <proxy binary> <work directory> <mode: ads|xds|delta|delta-ads> <first of 110 free ports>
# The module comes from the Go module cache (`go mod download`); its sources are copied, never changed in place.
set -eu

proxy=$1
work=$2
mode=$3
base=$4
module=github.com/envoyproxy/go-control-plane
version=v0.14.0
source=$work/source

command -v go >/dev/null || { echo "this test needs go" >&2; exit 2; }

(
  # One build serves all modes; who comes first builds.
  flock 9
  if [ ! -x "$work/bin/test" ]; then
    rm -rf "$source"
    mkdir -p "$work/bin"
    directory=$(cd / && go mod download -json "$module@$version" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",\{0,1\}$/\1/p')
    cp -R "$directory" "$source"
    chmod -R u+w "$source"
    cd "$source"
    # They point to directories that a module archive does not hold.
    go mod edit -dropreplace="$module/envoy" -dropreplace="$module/ratelimit"
    export GOFLAGS=-mod=mod
    go build -o "$work/bin/upstream" ./internal/upstream
    go build -o "$work/bin/test.new" ./pkg/test/main
    mv "$work/bin/test.new" "$work/bin/test"
  fi
) 9>"$work/lock"

run=$work/run-$mode-$$
mkdir -p "$run"
runtimes=1
case $mode in
  ads) sample=bootstrap-ads.yaml runtimes=2 ;;
  xds) sample=bootstrap-xds.yaml ;;
  delta) sample=bootstrap-delta.yaml ;;
  delta-ads) sample=bootstrap-delta-ads.yaml ;;
esac
gateway=$base
xds=$((base + 1))
upstream=$((base + 2))
als=$((base + 3))
admin=$((base + 4))
listeners=$((base + 10))
sed -e "s/port_value: 19000/port_value: $admin/" -e "s/port_value: 18000/port_value: $xds/" \
    -e "s/port_value: 18090/port_value: $als/" -e "s/port_value: 18001/port_value: $gateway/" \
    "$source/sample/$sample" >"$run/bootstrap.yaml"

message="from the upstream of $mode"
"$work/bin/upstream" -upstream "$upstream" -message "$message" >"$run/upstream.log" 2>&1 &
upstream_pid=$!
"$proxy" -c "$run/bootstrap.yaml" --drain-time-s 1 --disable-hot-restart -l info >"$run/proxy.log" 2>&1 &
proxy_pid=$!
trap 'kill $proxy_pid $upstream_pid 2>/dev/null; wait 2>/dev/null' EXIT INT TERM

cd "$source"
status=0
"$work/bin/test" --xds="$mode" --runtimes="$runtimes" --message="$message" --port="$xds" --gateway="$gateway" --upstream="$upstream" \
  --als="$als" --base="$listeners" -scopedhttp 0 -vhdshttp 0 >"$run/test.log" 2>&1 || status=$?
tail -5 "$run/test.log"
if [ $status -ne 0 ]; then
  cat "$run/test.log"
  echo "---- proxy"
  tail -100 "$run/proxy.log"
fi
exit $status
