#!/bin/sh
# Beside a Sentinel that starts. When everything starts at once, as after a power cut, the last primary gets a minute to come
# back before another takes its place, which may lack its last writes. From then on seconds count.
# It is no postStart hook: until one ends nobody learns the pod's address, and the Redis pods ask the Sentinels by name.
set -eu
minute=$(($(date +%s) + 60))

sentinel() {
  timeout 2 redis-cli -p 26379 SENTINEL "$@" 2>/dev/null
}

field() {
  printf '%s\n' "$facts" | sed -n "/^$1\$/{n;p;}"
}

# By the Sentinel's own word: if only this script reached the primary, seconds would find it down at once, for how long the
# Sentinel has asked at the address of before. The runid is there when it was answered, also while the primary reads its file
# (LOADING); and no PING waits for an answer.
hears_the_primary() {
  facts=$(sentinel MASTER ragherd) && [ -n "$(field runid)" ] && [ "$(field last-ping-sent)" -lt 1000 ]
}

until hears_the_primary || [ "$(date +%s)" -ge "$minute" ]; do sleep 1; done
until sentinel SET ragherd down-after-milliseconds 5000 | grep -qx OK; do sleep 1; done
