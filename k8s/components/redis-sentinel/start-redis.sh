#!/bin/sh
# Starts as what two Sentinels say: the primary, or a replica of it. It waits until two agree, because a wrong start as the
# primary could cost writes. The configuration with the password in it is in memory only. The image's own entrypoint
# loads the search module; a redis-server started past it has none.
set -eu
umask 077
password=$(cat /etc/redis-secret/password)
me=$POD_NAME.redis

# The primary's name by one Sentinel, or nothing.
primary_by() {
  timeout 2 redis-cli -h "$1.redis-sentinel" -p 26379 SENTINEL GET-MASTER-ADDR-BY-NAME ragherd 2>/dev/null |
    sed -n 1p
}

agreed_primary() {
  for number in 0 1 2; do primary_by "redis-sentinel-$number"; done | grep -F .redis | sort | uniq -d | sed -n 1p
}

trap 'exit 143' TERM # a process 1 without it would be deaf while it waits
until primary=$(agreed_primary) && [ -n "$primary" ]; do
  echo "waiting for two Sentinels that name the same primary"
  sleep 1
done
# For the probes. Not out of redis.conf: a failover has it written anew, with quotes.
printf '%s' "$password" >/run/redis/password
{
  cat /etc/redis/redis.conf
  printf 'requirepass %s\nmasterauth %s\nreplica-announce-ip %s\n' "$password" "$password" "$me"
  [ "$primary" = "$me" ] || printf 'replicaof %s 6379\n' "$primary"
} >/run/redis/redis.conf
exec docker-entrypoint.sh redis-server /run/redis/redis.conf
