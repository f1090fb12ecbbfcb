-- A lease that one worker of the fleet has at a time.
-- KEYS[1] string  any key: the worker that has the lease; it expires with the lease

-- name: acquire
-- Takes a free lease, or renews the worker's own.
-- ARGV: worker, lease_ms
-- Returns 1 if the worker has the lease now, else 0.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1

-- name: release
-- Releases the lease if the worker still has it.
-- ARGV: worker
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 0
