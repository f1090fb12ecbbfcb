-- Renews a lead; takes it again where it is gone (FLUSHALL) and the leader has not been away for longer than a lease.
-- KEYS[1] hash rag:flight:{<scope>:<digest>}
-- ARGV: worker, lease_ms, fence, 1 where it may be taken again
-- Gives how many follow; -1 where the lead is lost.
local flight, fence = KEYS[1], redis.call('HGET', KEYS[1], 'fence')
if fence and fence ~= ARGV[3] then return -1 end
if not fence then
  if ARGV[4] ~= '1' then return -1 end
  redis.call('HSET', flight, 'leader', ARGV[1], 'fence', ARGV[3], 'began_ms', int(now))
end
redis.call('PEXPIRE', flight, ARGV[2])
return #followers(flight)
