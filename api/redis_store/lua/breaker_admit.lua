-- Decides whether one call may go to Ollama. Keys: see breaker_common.lua.
-- ARGV: token, worker, lease_ms, half_open_max_calls, timeout_ms
-- Returns {granted 0|1, probe 0|1, lost permits found, state, epoch, wait_ms, forced}
local token, worker = ARGV[1], ARGV[2]
local lease, permits, timeout = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local now = now_ms()
local s = load_state(now)

if s.forced == 'OPEN' then return {0, 0, 0, position(s, now, timeout)} end
if s.state == 'CLOSED' then return {1, 0, 0, position(s, now)} end
if s.state == 'OPEN' then
  if now < s.until_ms then return {0, 0, 0, position(s, now)} end
  move(s, 'HALF_OPEN', 'wait_elapsed', worker, now, 0)
end

local lost = redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
if lost > 0 then redis.call('HINCRBY', KEYS[1], 'half_open_lost', lost) end
if redis.call('ZCARD', KEYS[3]) < permits then
  redis.call('ZADD', KEYS[3], now + lease, token)
  redis.call('HINCRBY', KEYS[1], 'half_open_probes', 1)
  return {1, 1, lost, position(s, now)}
end
local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
return {0, 0, lost, position(s, now, math.min(250, tonumber(first[2]) - now))}
