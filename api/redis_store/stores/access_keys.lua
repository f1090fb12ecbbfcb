-- API keys. Workers keep copies of the keys that they have seen, and follow the epoch, which grows when one changes.
--   hash  rag:keys      epoch; id:<id> -> when the key was made (ms)
--   hash  rag:key:<id>  tenant, role, name, models (JSON), digest, created_ms, expires_ms, rotated_ms, last_used_ms,
--                       old_digest, old_until_ms, requests_per_minute, tokens_per_minute, tokens_per_day,
--                       tokens_per_month, concurrent_streams

-- name: read
-- KEYS[1] hash all keys   KEYS[2] hash the key
-- Returns {epoch, now_ms, field, value, field, value ...}
local reply = {redis.call('HGET', KEYS[1], 'epoch') or '0', int(now_ms())}
for _, part in ipairs(redis.call('HGETALL', KEYS[2])) do reply[#reply + 1] = part end
return reply

-- name: create
-- KEYS[1] hash all keys   KEYS[2] hash the key
-- ARGV: id, most keys that there may be, field, value ...
-- Returns when it was made (ms), or '' if there are too many.
local epochs = redis.call('HGET', KEYS[1], 'epoch') and 1 or 0
if redis.call('HLEN', KEYS[1]) - epochs >= tonumber(ARGV[2]) then return '' end
local now = int(now_ms())
redis.call('HSET', KEYS[2], 'created_ms', now, unpack(ARGV, 3))
redis.call('HSET', KEYS[1], 'id:' .. ARGV[1], now)
return now

-- shared
-- The clock keeps epochs apart that were written before and after a loss of all keys.
local function changed(channel)
  local epoch = int(math.max(tonumber(redis.call('HGET', KEYS[1], 'epoch') or 0) + 1, now_ms()))
  redis.call('HSET', KEYS[1], 'epoch', epoch)
  redis.call('PUBLISH', channel, epoch)
end

-- name: rotate
-- KEYS[1] hash all keys   KEYS[2] hash the key
-- ARGV: channel that tells the workers, new digest, how long the former one stays valid (ms)
-- Returns the fields of the key, none if it is unknown.
local former = redis.call('HGET', KEYS[2], 'digest')
if not former then return {} end
local now = now_ms()
redis.call('HSET', KEYS[2], 'digest', ARGV[2], 'rotated_ms', int(now), 'old_digest', former,
  'old_until_ms', int(now + tonumber(ARGV[3])))
changed(ARGV[1])
return redis.call('HGETALL', KEYS[2])

-- name: revoke
-- KEYS[1] hash all keys   KEYS[2] hash the key
-- ARGV: channel that tells the workers, id
-- Returns the fields that the key had, none if it is unknown.
local fields = redis.call('HGETALL', KEYS[2])
redis.call('DEL', KEYS[2])
redis.call('HDEL', KEYS[1], 'id:' .. ARGV[2])
if fields[1] then changed(ARGV[1]) end
return fields

-- name: used
-- KEYS: hashes of keys
local now = int(now_ms())
for _, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 1 then redis.call('HSET', key, 'last_used_ms', now) end
end
