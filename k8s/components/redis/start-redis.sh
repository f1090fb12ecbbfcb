#!/bin/sh
# The configuration with the password in it is in memory only. The image's own entrypoint loads the search module; a
# redis-server started past it has none.
set -eu
umask 077
password=$(cat /etc/redis-secret/password)
{
  cat /etc/redis/redis.conf
  printf 'requirepass %s\n' "$password"
} >/run/redis/redis.conf
exec docker-entrypoint.sh redis-server /run/redis/redis.conf
