-- An operator's override, or the end of one. Keys: see breaker_common.lua.  ARGV: action OPEN|CLOSED|RESET, who
-- Returns {state, epoch, wait_ms, forced}
local action, by = ARGV[1], ARGV[2]
local now = now_ms()
local s = load_state(now)
if action == 'RESET' then
  move(s, 'CLOSED', 'reset', by, now, 0)
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'state', 'CLOSED', 'epoch', int(s.epoch), 'since_ms', int(now), 'until_ms', int(now),
    'reason', 'reset', 'by', by, 'forced', '')
  s.forced = ''
else
  move(s, action, action == 'OPEN' and 'forced_open' or 'forced_close', by, now, 0)
  redis.call('HSET', KEYS[1], 'forced', action)
  s.forced = action
end
return {position(s, now)}
