-- The reports of the workers (that they are alive, counters, retries), and leases.
--   hash    rag:worker:<id>                               what a worker reports about itself
--   zset    rag:workers                                   worker -> end of its lease (ms)
--   hash    rag:stats:cache                               counter -> count
--   string  rag:stats:batch:{rag:stats:cache}:<worker>    number of the worker's last batch
--   hash    rag:stats:retries                             <bucket>:calls, <bucket>:retries -> count
--   hash    rag:history:live:<hour>-<minute>              count of one minute -> number
--   hash    rag:experiment:<name>:figures                 count of an experiment -> number
--   string  a lease's key                                 the worker that has the lease; it expires with the lease

-- name: renew_worker
-- Renews a worker's lease and drops workers whose lease has expired.
-- KEYS[1] hash the worker   KEYS[2] zset all workers
-- ARGV: worker, lease_ms, field, value, field, value ...
-- Returns how many workers are alive.
local now = now_ms()
local lease = tonumber(ARGV[2])
redis.call('HSET', KEYS[1], 'id', ARGV[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], lease)
redis.call('ZADD', KEYS[2], int(now + lease), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', int(now))
redis.call('PEXPIRE', KEYS[2], 2 * lease)
return redis.call('ZCARD', KEYS[2])

-- name: add_counters
-- Adds a batch to the counters, to the minutes of the history, and to the figures of experiments, once however often it
-- is sent. A worker that gets no reply sends the batch again.
-- KEYS[1] hash the counters   KEYS[2] string the worker's last batch   KEYS[3...] hashes the minutes, then the figures
-- ARGV: number of the batch, how long Redis remembers it (ms), lifetime_ms of the counters, of the minutes, of the
--       figures, how many minutes, how many counters, then name, count ... of the counters, then number of the key,
--       name, count ... of the minutes and figures
-- Returns the time in milliseconds.
local FIRST, now = 8, int(now_ms())
if redis.call('GET', KEYS[2]) == ARGV[1] then return now end
local minutes, others = 2 + tonumber(ARGV[6]), FIRST + 2 * tonumber(ARGV[7])
for i = FIRST, others - 1, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
for i = others, #ARGV, 3 do redis.call('HINCRBY', KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 2]) end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
for i = 3, #KEYS do redis.call('PEXPIRE', KEYS[i], i <= minutes and ARGV[4] or ARGV[5]) end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return now

-- name: add_retries
-- Adds a worker's calls and retries to the fleet's.
-- KEYS[1] hash the retries
-- ARGV: calls, retries, seconds per bucket, buckets in the window, lifetime_ms
-- Returns {calls, retries} of the fleet in the window.
local now = math.floor(now_us() / 1000000)
local bucket = math.floor(now / tonumber(ARGV[3]))
local oldest = bucket - tonumber(ARGV[4]) + 1

redis.call('HINCRBY', KEYS[1], bucket .. ':calls', ARGV[1])
redis.call('HINCRBY', KEYS[1], bucket .. ':retries', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[5])

local sums = {calls = 0, retries = 0}
local counts = redis.call('HGETALL', KEYS[1])
for index = 1, #counts, 2 do
  local at, name = string.match(counts[index], '^(%d+):(%a+)$')
  if at and tonumber(at) < oldest then
    redis.call('HDEL', KEYS[1], counts[index])
  elseif sums[name] then -- ignore what a later release counts
    sums[name] = sums[name] + tonumber(counts[index + 1])
  end
end
return {sums.calls, sums.retries}

-- name: acquire_lease
-- Takes a free lease, or renews the worker's own.
-- KEYS[1] string the lease   ARGV: worker, lease_ms
-- Returns 1 if the worker has the lease now, else 0.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1

-- name: release_lease
-- Releases the lease if the worker still has it.
-- KEYS[1] string the lease   ARGV: worker
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 0
