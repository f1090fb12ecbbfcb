-- Renews the hold on work, or gives it back: what is given back in good order is no failed attempt.
-- KEYS[1] hash  rag:doc:<id>:work
-- ARGV: revision, holder, lease_ms (0: gives it back)
-- Returns 1, or 0 where it is void by now, or another's.
if not is_held(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
local lease = tonumber(ARGV[3])
redis.call('HSET', KEYS[1], 'held_until_ms', int(now_ms() + lease))
if lease == 0 then
  redis.call('HDEL', KEYS[1], 'holder')
  redis.call('HINCRBY', KEYS[1], 'attempts', -1)
end
return 1
