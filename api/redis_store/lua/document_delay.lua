-- Puts off work that could not get on, with the reason, unless that has gone on for long enough.
-- KEYS[1] hash  rag:doc:<id>:work
-- ARGV: revision, holder, pause_ms, patience_ms, reason
-- Returns 1; 2 where it was put off for long enough, and is held still; 0 where it is void by now, or another's.
if not is_held(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
local now = now_ms()
local since = tonumber(redis.call('HGET', KEYS[1], 'delayed_ms') or now)
if now - since >= tonumber(ARGV[4]) then return 2 end
redis.call('HSET', KEYS[1], 'delayed_ms', int(since), 'delayed_by', ARGV[5],
  'held_until_ms', int(now + tonumber(ARGV[3])))
redis.call('HINCRBY', KEYS[1], 'delays', 1)
redis.call('HINCRBY', KEYS[1], 'attempts', -1) -- nobody died of it
redis.call('HDEL', KEYS[1], 'holder')
return 1
