-- The answers that were sent, so that any worker understands feedback on them.
--   string  rag:served:<request ID>   what was answered
--   string  rag:stats:served:<minute> how many answers were remembered in that minute
-- Clients choose request IDs. A second tenant with the same ID has the key '...<request ID> <tenant>'.

-- A record ends with its tenant, after the sixth space.
local function tenant_of(record) return string.match(record, '^%S+ %S+ %S+ %S+ %S+ %S+ (.*)$') end

-- name: remember
-- Remembers answers, up to a number a minute.
-- KEYS[1] prefix of the answers   KEYS[2] prefix of the counts
-- ARGV: lifetime_ms, most answers a minute, request ID, record, request ID, record ...
-- Returns {how many were left out for want of room, milliseconds until there is room again}.
local MINUTE_MS, now = 60000, now_ms()
local counter, lifetime, most = KEYS[2] .. int(math.floor(now / MINUTE_MS)), ARGV[1], tonumber(ARGV[2])
local room, added = most - tonumber(redis.call('GET', counter) or 0), 0
local last = math.min(#ARGV, 2 + 2 * math.max(room, 0))
for i = 3, last, 2 do
  local key, record = KEYS[1] .. ARGV[i], ARGV[i + 1]
  local there = redis.pcall('GET', key) -- an error if an older release has a hash of this name
  if type(there) == 'string' and tenant_of(there) ~= tenant_of(record) then key = key .. ' ' .. tenant_of(record) end
  redis.call('SET', key, record, 'PX', lifetime)
  added = added + 1
end
if added > 0 then redis.call('SET', counter, int(most - room + added), 'PX', 2 * MINUTE_MS) end
return {(#ARGV - last) / 2, int(MINUTE_MS - now % MINUTE_MS)}

-- name: recall
-- Finds an answer by its request ID.
-- KEYS: for each form of the request ID: string with the tenant, string without
-- ARGV: tenant, 1 if an answer to any tenant will do
-- Returns the record, or false.
for _, key in ipairs(KEYS) do
  local record = redis.call('GET', key)
  if record and (ARGV[2] == '1' or tenant_of(record) == ARGV[1]) then return record end
end
return false
