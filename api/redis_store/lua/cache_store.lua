-- Stores an answer under an absolute lifetime and holds the bound on the number of entries.
-- KEYS[1] hash  rag:cache:<scope>:<digest>   KEYS[2] zset  rag:evict:cache, key of an entry -> its last use (ms)
-- ARGV: ttl_ms, stale_ms, max_size, field, value, field, value ...
-- Returns {created_ms, expires_ms, evicted}
local ttl, stale, max_size = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function int(number) return string.format('%d', number) end

redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'created_ms', int(now), 'expires_ms', int(now + ttl), unpack(ARGV, 4))
redis.call('PEXPIRE', KEYS[1], ttl + stale)
redis.call('ZADD', KEYS[2], now, KEYS[1])
redis.call('PEXPIRE', KEYS[2], ttl + stale)

local evicted = 0
local over = redis.call('ZCARD', KEYS[2]) - max_size
if over > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[2], over)
  for i = 1, #oldest, 2 do evicted = evicted + redis.call('UNLINK', oldest[i]) end
end
return {int(now), int(now + ttl), evicted}
