-- Notes that a worker embeds documents by this embedder now.
-- KEYS[1] zset  rag:corpus:embedders, embedder -> its last use (ms)   ARGV: embedder
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], 'GT', string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000)), ARGV[1])
return 0
