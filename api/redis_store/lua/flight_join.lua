-- The lead of a flight where nobody has it, else a place among its followers, taken or renewed.
-- KEYS[1] hash rag:flight:{<scope>:<digest>}   KEYS[2] hash rag:cache:<scope>:<digest>
-- ARGV: worker, lease_ms, channel prefix, <scope>:<digest>, asked_ms (0: the entry does not matter), not_before_ms: a
-- lead that was asked for then or earlier is nobody's, since such answers have been deleted since
-- Gives {'lead' | 'follow' | 'stored', fence, and to a follower the end of its place, which no other of its places has}
local flight, worker, lease, asked, not_before = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[5]), tonumber(ARGV[6])
if asked > 0 and tonumber(redis.call('HGET', KEYS[2], 'created_ms') or 0) >= asked then return {'stored', ''} end
local leader, fence, begun = unpack(redis.call('HMGET', flight, 'leader', 'fence', 'asked_ms'))
local outdated = not_before > 0 and tonumber(begun or 0) <= not_before
if leader and leader ~= worker and not outdated then
  local before = tonumber(redis.call('HGET', flight, FOLLOWER .. worker) or 0)
  local place = int(math.max(now + lease, before + 1))
  redis.call('HSET', flight, FOLLOWER .. worker, place)
  redis.call('PUBLISH', ARGV[3] .. leader, 'followed ' .. ARGV[4])
  return {'follow', fence, place}
end
fence = int(micros) .. '-' .. worker
redis.call('HSET', flight, 'leader', worker, 'fence', fence, 'began_ms', int(now), 'asked_ms', int(asked))
redis.call('HDEL', flight, FOLLOWER .. worker)
redis.call('PEXPIRE', flight, lease)
return {'lead', fence}
