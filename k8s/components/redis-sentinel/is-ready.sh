#!/bin/sh
# A rollout or a node drain removes the next pod, perhaps the primary, once this one is ready. So a replica is ready
# when it has caught up. The Secret may have changed since this server started.
set -eu
REDISCLI_AUTH=$(cat /run/redis/password)
export REDISCLI_AUTH
redis-cli ping | grep -qx PONG
redis-cli info replication | grep -Eq '^(role:master|master_link_status:up)'
