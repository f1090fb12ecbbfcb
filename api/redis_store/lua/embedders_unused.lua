-- Finds embedders that no worker has used for a while. One of which nothing is known counts as used now.
-- KEYS[1] zset  rag:corpus:embedders, embedder -> its last use (ms)   ARGV: keep_ms, embedder that has an index ...
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'NX', string.format('%d', now), ARGV[i]) end
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%d', now - tonumber(ARGV[1])))
