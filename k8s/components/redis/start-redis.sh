#!/bin/sh
# The configuration with the password in it is in memory only. The image's own entrypoint loads the search module; a
# redis-server started past it has none.
set -eu
umask 077
password=$(cat /etc/redis-secret/password)
# For the probes. Not out of redis.conf: a failover has it written anew, with quotes.
printf '%s' "$password" >/run/redis/password
{
  cat /etc/redis/redis.conf
  printf 'requirepass %s\n' "$password"
} >/run/redis/redis.conf
exec docker-entrypoint.sh redis-server /run/redis/redis.conf
