-- Finds which of the indexes that exist nobody has used for a while.
-- KEYS[1] zset  rag:indexes, name of an index -> its last use (ms)   ARGV: lifetime_ms, idle_ms, name ...
-- Returns the idle ones. One of which nothing is known counts as used now; those that do not exist are forgotten.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local idle, exists = {}, {}
for i = 3, #ARGV do
  exists[ARGV[i]] = true
  redis.call('ZADD', KEYS[1], 'NX', string.format('%d', now), ARGV[i])
  if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[i])) <= now - tonumber(ARGV[2]) then idle[#idle + 1] = ARGV[i] end
end
for _, name in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if not exists[name] then redis.call('ZREM', KEYS[1], name) end
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return idle
