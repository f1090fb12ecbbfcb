#!/bin/sh
# Keeps the configuration with the password in memory only. The image's entrypoint loads the search module; without it
# Redis has none.
set -eu
umask 077
password=$(cat /etc/redis-secret/password)
# For the probes. They cannot read redis.conf, which a failover rewrites with quotes.
printf '%s' "$password" >/run/redis/password
{
  cat /etc/redis/redis.conf
  printf 'requirepass %s\n' "$password"
} >/run/redis/redis.conf
exec docker-entrypoint.sh redis-server /run/redis/redis.conf
