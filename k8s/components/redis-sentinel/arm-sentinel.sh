#!/bin/sh
# Runs beside a starting Sentinel. After a power cut, the last primary gets a minute to come back before another, which
# may lack its last writes, takes over. From then on a failover takes seconds.
# A postStart hook will not do: DNS has no address of the pod until it ends, and the Redis pods ask Sentinels by name.
set -eu
minute=$(($(date +%s) + 60))

sentinel() {
  timeout 2 redis-cli -p 26379 SENTINEL "$@" 2>/dev/null
}

field() {
  printf '%s\n' "$facts" | sed -n "/^$1\$/{n;p;}"
}

# Asks the Sentinel rather than the primary: a Sentinel that still pings an old address would declare the primary down
# at once. It has a runid once the primary has answered, even with LOADING; last-ping-sent is 0 if every PING was
# answered.
hears_the_primary() {
  facts=$(sentinel MASTER ragherd) && [ -n "$(field runid)" ] && [ "$(field last-ping-sent)" -lt 1000 ]
}

until hears_the_primary || [ "$(date +%s)" -ge "$minute" ]; do sleep 1; done
until sentinel SET ragherd down-after-milliseconds 5000 | grep -qx OK; do sleep 1; done
