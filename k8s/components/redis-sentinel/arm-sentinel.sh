#!/bin/sh
# Beside a Sentinel that starts. When everything starts at once, as after a power cut, the last primary gets a minute to come
# back before another takes its place, which may lack its last writes. From then on seconds count.
# It is no postStart hook: until one ends nobody learns the pod's address, and the Redis pods ask the Sentinels by name.
set -eu
password=$(cat /etc/redis-secret/password)
minute=$(($(date +%s) + 60))

sentinel() {
  timeout 2 redis-cli -p 26379 SENTINEL "$@" 2>/dev/null
}

primary_answers() {
  primary=$(sentinel GET-MASTER-ADDR-BY-NAME ragherd | sed -n 1p)
  # While it reads its file the answer is LOADING: it is there.
  [ -n "$primary" ] && REDISCLI_AUTH=$password timeout 2 redis-cli -h "$primary" PING 2>/dev/null | grep -Eq 'PONG|LOADING'
}

until primary_answers || [ "$(date +%s)" -ge "$minute" ]; do sleep 1; done
until sentinel SET ragherd down-after-milliseconds 5000 | grep -qx OK; do sleep 1; done
