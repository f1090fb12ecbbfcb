-- Says that a worker lives, and forgets those whose lease has ended.
-- KEYS[1] hash  rag:worker:<id>  what it says of itself
-- KEYS[2] zset  rag:workers      worker -> end of its lease (ms)
-- ARGV: worker, lease in ms, field, value, field, value ...
-- Gives how many live.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = tonumber(ARGV[2])
redis.call('HSET', KEYS[1], 'id', ARGV[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], lease)
redis.call('ZADD', KEYS[2], string.format('%d', now + lease), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%d', now))
redis.call('PEXPIRE', KEYS[2], 2 * lease)
return redis.call('ZCARD', KEYS[2])
