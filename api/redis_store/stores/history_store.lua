-- The fleet's figures by minute. One worker, the keeper, writes them; every worker adds counts (`add_counters`).
--   hash    rag:history:<hour>                minute -> figures of the minute (JSON)
--   hash    rag:history:live:<hour>-<minute>  name -> number, counted and observed in this minute
--   string  rag:history:keeper                the worker that has the lease to write

-- name: observe
-- Adds what the keeper has observed to a minute, if it still has the lease.
-- KEYS[1] string the lease   KEYS[2] hash the minute
-- ARGV: worker, lifetime_ms, how many sums, then name, number ... to add, then field, value ... to set
-- Returns 1, or 0 if another worker has the lease.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local fields = 4 + 2 * tonumber(ARGV[3])
for i = 4, fields - 1, 2 do redis.call('HINCRBY', KEYS[2], ARGV[i], ARGV[i + 1]) end
for i = fields, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1

-- name: write
-- Writes the figures of minutes, if the writer has the lease.
-- KEYS[1] string the lease   KEYS[2...] hashes the hours
-- ARGV: worker, lifetime_ms, then number of the key, minute, figures ...
-- Returns 1, or 0 if another worker has the lease.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 3, #ARGV, 3 do redis.call('HSET', KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 2]) end
for i = 2, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
return 1
