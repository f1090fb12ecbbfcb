-- Takes work on a document that nobody has.
-- KEYS[1] hash  rag:doc:<id>:work   KEYS[2] zset  rag:corpus:work, id -> when it was asked for (ms)
-- ARGV: id, worker, holder (another each time), lease_ms
-- Returns the fields of the work and their values; nothing where there is none, or where somebody has it.
local until_ms, revision = unpack(redis.call('HMGET', KEYS[1], 'held_until_ms', 'revision'))
if not revision then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {}
end
local now = now_ms()
if (tonumber(until_ms) or 0) > now then return {} end
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('HSET', KEYS[1], 'by', ARGV[2], 'holder', ARGV[3], 'held_until_ms', int(now + tonumber(ARGV[4])))
return redis.call('HGETALL', KEYS[1])
