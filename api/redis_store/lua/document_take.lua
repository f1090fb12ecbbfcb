-- Takes work on a document that nobody has, or renews it for the worker that has it.
-- KEYS[1] hash  rag:doc:<id>:work   KEYS[2] zset  rag:corpus:work, id -> when it was asked for (ms)
-- ARGV: id, worker, lease_ms (0: gives it back, as if it had not been taken: nobody died of it)
-- Returns the fields of the work and their values; nothing where there is none, or where another worker has it.
local by, until_ms, revision = unpack(redis.call('HMGET', KEYS[1], 'by', 'held_until_ms', 'revision'))
if not revision then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {}
end
local now = now_ms()
local held = (tonumber(until_ms) or 0) > now
if held and by ~= ARGV[2] then return {} end
local lease = tonumber(ARGV[3])
if not held then
  redis.call('HINCRBY', KEYS[1], 'attempts', 1)
elseif lease == 0 then
  redis.call('HINCRBY', KEYS[1], 'attempts', -1)
end
redis.call('HSET', KEYS[1], 'by', ARGV[2], 'held_until_ms', int(now + lease))
return redis.call('HGETALL', KEYS[1])
