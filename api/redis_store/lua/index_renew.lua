-- Notes that a worker uses these indexes now.
-- KEYS[1] zset  rag:indexes, name of an index -> its last use (ms)   ARGV: lifetime_ms, name ...
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], now, ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 0
