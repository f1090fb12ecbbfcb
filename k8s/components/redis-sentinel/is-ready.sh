#!/bin/sh
# A rollout or a node drain removes the next pod once this one is ready. So a replica is ready when it has caught up
# with its primary; otherwise the primary could go while no replica has its last writes.
# Uses the password that this server started with; the Secret may have changed since.
set -eu
REDISCLI_AUTH=$(cat /run/redis/password)
export REDISCLI_AUTH
redis-cli ping | grep -qx PONG
redis-cli info replication | grep -Eq '^(role:master|master_link_status:up)'
