-- Takes work on a document that nobody has.
-- KEYS[1] hash  rag:doc:<id>:work   KEYS[2] zset  rag:corpus:work, id -> when it was asked for (ms)
-- ARGV: id, worker, holder (another each time), lease_ms, kind of file that this worker reads ...
-- Returns the fields of the work and their values; nothing where there is none, where somebody has it, or where it is
-- for a worker of a later release: then it is left for that, with its attempts.
local until_ms, revision, phase, media_type =
  unpack(redis.call('HMGET', KEYS[1], 'held_until_ms', 'revision', 'phase', 'media_type'))
if not revision then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {}
end
if phase ~= 'store' and phase ~= 'tell' then return {} end
local reads = not media_type
for i = 5, #ARGV do reads = reads or ARGV[i] == media_type end
if not reads then return {} end
local now = now_ms()
if (tonumber(until_ms) or 0) > now then return {} end
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('HSET', KEYS[1], 'by', ARGV[2], 'holder', ARGV[3], 'held_until_ms', int(now + tonumber(ARGV[4])))
return redis.call('HGETALL', KEYS[1])
