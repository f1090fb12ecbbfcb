-- The lead of work that nobody follows, where nobody has it.
-- KEYS[1] hash rag:flight:{<scope>:<digest>}:refresh   ARGV: worker, lease_ms
-- Gives the fence; '' where another has it.
if redis.call('EXISTS', KEYS[1]) == 1 then return '' end
local fence = int(micros) .. '-' .. ARGV[1]
redis.call('HSET', KEYS[1], 'leader', ARGV[1], 'fence', fence, 'began_ms', int(now))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return fence
