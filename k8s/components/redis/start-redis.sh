#!/bin/sh
# Keeps the password in memory only. The image's entrypoint loads the search module.
set -eu
umask 077
password=$(cat /etc/redis-secret/password)
# For the probes; a failover rewrites redis.conf with quotes.
printf '%s' "$password" >/run/redis/password
{
  cat /etc/redis/redis.conf
  printf 'requirepass %s\n' "$password"
} >/run/redis/redis.conf
exec docker-entrypoint.sh redis-server /run/redis/redis.conf
