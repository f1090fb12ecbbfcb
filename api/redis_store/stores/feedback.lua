-- Which answers went out, so that feedback on them can be understood, on any worker.
--   hash  rag:served:<minute>   request ID -> what was answered; (count): how many answers
-- Clients choose request IDs. A second tenant with the same ID has the field '<request ID> <tenant>'.

local MINUTE_MS = 60000
local COUNT = '(count)'

-- A record ends with its tenant, after the sixth space.
local function tenant_of(record) return string.match(record, '^%S+ %S+ %S+ %S+ %S+ %S+ (.*)$') end

-- name: remember
-- Adds answers to the hash of this minute.
-- KEYS[1] prefix of the hashes
-- ARGV: lifetime_ms, most answers a minute, request ID, record, request ID, record ...
-- Returns how many were left out for want of room.
local bucket, most = KEYS[1] .. int(math.floor(now_ms() / MINUTE_MS)), tonumber(ARGV[2])
local count, left_out = tonumber(redis.call('HGET', bucket, COUNT) or 0), 0
for i = 3, #ARGV, 2 do
  local field, record = ARGV[i], ARGV[i + 1]
  local there = redis.call('HGET', bucket, field)
  if there and tenant_of(there) ~= tenant_of(record) then field = field .. ' ' .. tenant_of(record) end
  if count < most then
    count = count + redis.call('HSET', bucket, field, record)
  else
    left_out = left_out + 1
  end
end
redis.call('HSET', bucket, COUNT, int(count))
redis.call('PEXPIRE', bucket, tonumber(ARGV[1]) + MINUTE_MS)
return left_out

-- name: recall
-- Finds an answer by its request ID, the latest first.
-- KEYS[1] prefix of the hashes
-- ARGV: lifetime_ms, tenant, 1 if an answer to any tenant will do, request ID, another form of it ...
-- Returns the record, or false.
local minute, minutes = math.floor(now_ms() / MINUTE_MS), math.ceil(tonumber(ARGV[1]) / MINUTE_MS)
local tenant, any = ARGV[2], ARGV[3] == '1'
for age = 0, minutes do
  local bucket = KEYS[1] .. int(minute - age)
  for i = 4, #ARGV do
    for _, record in ipairs(redis.call('HMGET', bucket, ARGV[i] .. ' ' .. tenant, ARGV[i])) do
      if record and (any or tenant_of(record) == tenant) then return record end
    end
  end
end
return false
