-- Takes work on a document that nobody has, or renews it for the worker that has it.
-- KEYS[1] hash  rag:doc:<id>:work   KEYS[2] zset  rag:corpus:work, id -> when it was asked for (ms)
-- ARGV: id, worker, lease_ms (0: gives it back), kind of file that this worker reads ...
-- Returns the fields of the work and their values; nothing where there is none, where another worker has it, or where
-- it is for a worker of a later release: then it is left for that, with its attempts.
local by, until_ms, revision, phase, media_type =
  unpack(redis.call('HMGET', KEYS[1], 'by', 'held_until_ms', 'revision', 'phase', 'media_type'))
if not revision then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {}
end
if phase ~= 'store' and phase ~= 'tell' then return {} end
local reads = not media_type
for i = 4, #ARGV do reads = reads or ARGV[i] == media_type end
if not reads then return {} end
local now = now_ms()
local held = (tonumber(until_ms) or 0) > now
if held and by ~= ARGV[2] then return {} end
if not held then redis.call('HINCRBY', KEYS[1], 'attempts', 1) end
redis.call('HSET', KEYS[1], 'by', ARGV[2], 'held_until_ms', int(now + tonumber(ARGV[3])))
return redis.call('HGETALL', KEYS[1])
