-- Ends the lifetime of entries now: from here on they are stale. What is gone, or stale already, stays so.
-- KEYS[...] hash  rag:cache:<scope>:<digest>
-- Returns how many were fresh.
local time = redis.call('TIME')
local now, ended = time[1] * 1000 + math.floor(time[2] / 1000), 0
for _, entry in ipairs(KEYS) do
  local expires = tonumber(redis.call('HGET', entry, 'expires_ms') or 0)
  if expires > now then
    redis.call('HSET', entry, 'expires_ms', string.format('%d', now))
    ended = ended + 1
  end
end
return ended
