-- When each search index was last used.
-- KEYS[1] zset  rag:indexes  name of an index -> its last use (ms)

-- name: renew
-- Marks indexes as used now.
-- ARGV: lifetime_ms, name ...
local now = int(now_ms())
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], now, ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 0

-- name: idle
-- Finds existing indexes that no worker has used for a while. An index without an entry counts as used now.
-- ARGV: lifetime_ms, idle_ms, name of every existing index ...
-- Returns the names of the idle ones. Drops entries of indexes that do not exist.
local now = now_ms()
local idle, exists = {}, {}
for i = 3, #ARGV do
  exists[ARGV[i]] = true
  redis.call('ZADD', KEYS[1], 'NX', int(now), ARGV[i])
  if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[i])) <= now - tonumber(ARGV[2]) then idle[#idle + 1] = ARGV[i] end
end
for _, name in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if not exists[name] then redis.call('ZREM', KEYS[1], name) end
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return idle
