-- Stores an answer under an absolute lifetime and holds the bound on the number of entries.
-- KEYS[1] hash  rag:cache:<scope>:<digest>   KEYS[2] zset  rag:evict:cache, key of an entry -> its last use (ms)
-- KEYS[3] hash  rag:invalidated, which answers -> when (ms)   KEYS[4] hash  of the flight whose fence is given
-- ARGV: ttl_ms, stale_ms, max_size, fence ('': none), asked_ms, number of marks, mark ..., field, value, field, value ...
-- Returns {created_ms, expires_ms, evicted}; nothing where the fence is another's, or where one of the marks was set
-- since the answer was asked for.
local ttl, stale, max_size = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local fence, asked, marks = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
if fence ~= '' and redis.call('HGET', KEYS[4], 'fence') ~= fence then return {} end
for _, at in ipairs(redis.call('HMGET', KEYS[3], unpack(ARGV, 7, 6 + marks))) do
  if at and asked > 0 and asked <= tonumber(at) then return {} end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function int(number) return string.format('%d', number) end

redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'created_ms', int(now), 'expires_ms', int(now + ttl), unpack(ARGV, 7 + marks))
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
