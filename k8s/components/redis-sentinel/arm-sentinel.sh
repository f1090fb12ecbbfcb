#!/bin/sh
# Runs alongside a starting Sentinel. After a power cut, the last primary, which has the last writes, gets a minute to come
# back; then failovers take seconds. Until a postStart hook ends, DNS would not know the pod, which Redis asks by name.
set -eu
minute=$(($(date +%s) + 60))

sentinel() {
  timeout 2 redis-cli -p 26379 SENTINEL "$@" 2>/dev/null
}

field() {
  printf '%s\n' "$facts" | sed -n "/^$1\$/{n;p;}"
}

# Asks the Sentinel, which may still ping an old address. It has a runid once the primary has answered, even LOADING;
# last-ping-sent is 0 if every PING was answered.
hears_the_primary() {
  facts=$(sentinel MASTER ragherd) && [ -n "$(field runid)" ] && [ "$(field last-ping-sent)" -lt 1000 ]
}

until hears_the_primary || [ "$(date +%s)" -ge "$minute" ]; do sleep 1; done
until sentinel SET ragherd down-after-milliseconds 5000 | grep -qx OK; do sleep 1; done
