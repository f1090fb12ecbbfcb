#!/bin/sh
# Starts in the role that two Sentinels agree on, and waits until they do: a second primary could lose writes.
# Keeps the password in memory only. The image's entrypoint loads the search module.
set -eu
umask 077
password=$(cat /etc/redis-secret/password)
me=$POD_NAME.redis

# The primary's name according to one Sentinel, or nothing.
primary_by() {
  timeout 2 redis-cli -h "$1.redis-sentinel" -p 26379 SENTINEL GET-MASTER-ADDR-BY-NAME ragherd 2>/dev/null |
    sed -n 1p
}

agreed_primary() {
  for number in 0 1 2; do primary_by "redis-sentinel-$number"; done | grep -F .redis | sort | uniq -d | sed -n 1p
}

trap 'exit 143' TERM # process 1 ignores TERM without a trap
until primary=$(agreed_primary) && [ -n "$primary" ]; do
  echo "waiting for two Sentinels that name the same primary"
  sleep 1
done
# For the probes; a failover rewrites redis.conf with quotes.
printf '%s' "$password" >/run/redis/password
{
  cat /etc/redis/redis.conf
  printf 'requirepass %s\nmasterauth %s\nreplica-announce-ip %s\n' "$password" "$password" "$me"
  [ "$primary" = "$me" ] || printf 'replicaof %s 6379\n' "$primary"
} >/run/redis/redis.conf
exec docker-entrypoint.sh redis-server /run/redis/redis.conf
