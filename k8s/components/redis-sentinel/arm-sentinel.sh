#!/bin/sh
# After the start of a Sentinel (postStart). When everything starts at once, as after a power cut, the last primary gets a
# minute to come back before another takes its place, which may lack its last writes. From then on seconds count.
set -eu
REDISCLI_AUTH=$(cat /etc/redis-secret/password)
export REDISCLI_AUTH
me=$POD_NAME.redis-sentinel

primary_answers() {
  primary=$(timeout 2 redis-cli -h "$me" -p 26379 SENTINEL GET-MASTER-ADDR-BY-NAME ragherd 2>/dev/null | sed -n 1p)
  # While it reads its file the answer is LOADING: it is there.
  [ -n "$primary" ] && timeout 2 redis-cli -h "$primary" PING 2>/dev/null | grep -Eq 'PONG|LOADING'
}

tries=0
until primary_answers || [ "$tries" -ge 60 ]; do
  tries=$((tries + 1))
  sleep 1
done
redis-cli -h "$me" -p 26379 SENTINEL SET ragherd down-after-milliseconds 5000 | grep -qx OK
