#!/bin/sh
# A rollout, and a drain of nodes, take the next pod away once this one is ready. So a replica is ready once it has what its
# primary has: else the primary could go while no other has its last writes.
# The password is the one that this server was started with: the secret may have been changed since.
set -eu
REDISCLI_AUTH=$(cat /run/redis/password)
export REDISCLI_AUTH
redis-cli ping | grep -qx PONG
redis-cli info replication | grep -Eq '^(role:master|master_link_status:up)'
