#!/bin/sh
# What a Sentinel learns it writes into its own file, which outlives the pod: which one is the primary, who the others are.
# The first time redis-0 is the primary. The password is put in anew each time: it may have been changed.
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
# A minute, which arm-sentinel.sh makes seconds when the primary is there.
sed -i '/^sentinel auth-pass /d; /^sentinel down-after-milliseconds /d' "$file"
printf 'sentinel auth-pass ragherd %s\nsentinel down-after-milliseconds ragherd 60000\n' "$password" >>"$file"
# Sentinels reap it when it ends, and say in the log that they do not know it.
/bin/sh /etc/redis/arm-sentinel.sh &
# Sentinels take no password: the network policy says who reaches them.
exec docker-entrypoint.sh redis-server "$file" --sentinel --port 26379 --dir /data --protected-mode no
