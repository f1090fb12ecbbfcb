-- A living prober renews its permit. Keys: see breaker_common.lua.  ARGV: token, lease_ms
-- Returns 1, or 0 when the permit is no longer its own.
local now = now_ms()
local ends = redis.call('ZSCORE', KEYS[3], ARGV[1])
if not ends or tonumber(ends) <= now then return 0 end
redis.call('ZADD', KEYS[3], 'XX', now + tonumber(ARGV[2]), ARGV[1])
return 1
