-- Notes deletions. Of more than `most` the oldest stand for all that was made before them.
-- KEYS[1] zset  rag:deleted, what was deleted -> when (ms)
-- ARGV: lifetime_ms, most, then for each: mark, when (ms; 0: now)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function int(number) return string.format('%d', number) end
for i = 3, #ARGV, 2 do
  local at = tonumber(ARGV[i + 1])
  redis.call('ZADD', KEYS[1], 'GT', int(at > 0 and math.min(at, now) or now), ARGV[i])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', int(now - tonumber(ARGV[1])))
local over = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[2])
if over > 0 then
  local popped = redis.call('ZPOPMIN', KEYS[1], over)
  redis.call('ZADD', KEYS[1], 'GT', int(tonumber(popped[#popped])), 'all')
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 0
