-- Gives up a place among the followers, unless the worker has taken another since. Tells the leader.
-- KEYS[1] hash rag:flight:{<scope>:<digest>}
-- ARGV: worker, the end of the place, channel prefix, <scope>:<digest>
if redis.call('HGET', KEYS[1], FOLLOWER .. ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], FOLLOWER .. ARGV[1])
local leader = redis.call('HGET', KEYS[1], 'leader')
if leader then redis.call('PUBLISH', ARGV[3] .. leader, 'left ' .. ARGV[4]) end
return 1
