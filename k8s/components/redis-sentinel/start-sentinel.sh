#!/bin/sh
# A Sentinel keeps what it learns in a file on its volume. The first primary is redis-0. The password may have changed.
set -eu
umask 077
password=$(cat /etc/redis-secret/password)
file=/data/sentinel.conf
if [ ! -e "$file" ]; then
  cat >"$file" <<CONFIGURATION
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $POD_NAME.redis-sentinel
sentinel announce-port 26379
sentinel monitor ragherd redis-0.redis 6379 2
sentinel failover-timeout ragherd 15000
sentinel parallel-syncs ragherd 1
CONFIGURATION
fi
# A minute; arm-sentinel.sh reduces it to seconds when the primary is there.
sed -i '/^sentinel auth-pass /d; /^sentinel down-after-milliseconds /d' "$file"
printf 'sentinel auth-pass ragherd %s\nsentinel down-after-milliseconds ragherd 60000\n' "$password" >>"$file"
# The Sentinel reaps it, and logs that it does not know it.
/bin/sh /etc/redis/arm-sentinel.sh &
# Sentinels have no password: the network policy limits who reaches them.
exec docker-entrypoint.sh redis-server "$file" --sentinel --port 26379 --dir /data --protected-mode no
