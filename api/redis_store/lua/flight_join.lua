-- The lead of a flight where nobody has it, else a place among its followers, taken or renewed.
-- KEYS[1] hash rag:flight:{<scope>:<digest>}   KEYS[2] hash rag:cache:<scope>:<digest>
-- ARGV: worker, lease_ms, channel prefix, <scope>:<digest>, asked_ms (0: the entry does not matter)
-- Gives {'lead' | 'follow' | 'stored', fence}
local flight, worker, lease, asked = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[5])
if asked > 0 and tonumber(redis.call('HGET', KEYS[2], 'created_ms') or 0) >= asked then return {'stored', ''} end
local leader, fence = unpack(redis.call('HMGET', flight, 'leader', 'fence'))
if leader and leader ~= worker then
  redis.call('HSET', flight, FOLLOWER .. worker, int(now + lease))
  redis.call('PUBLISH', ARGV[3] .. leader, 'followed ' .. ARGV[4])
  return {'follow', fence}
end
fence = int(micros) .. '-' .. worker
redis.call('HSET', flight, 'leader', worker, 'fence', fence, 'began_ms', int(now))
redis.call('HDEL', flight, FOLLOWER .. worker)
redis.call('PEXPIRE', flight, lease)
return {'lead', fence}
