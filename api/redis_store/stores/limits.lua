-- Rate limits and budgets of keys and tenants, exact for the whole fleet.
--   hash  rag:limit:{<owner>}:<subject>  requests_us: when the requests so far are paid off; tokens, tokens_us: how
--         many the minute still owes, and as of when; day, day_tokens: the tokens of a day since 1970
local MINUTE, DAY = 60000000, 86400000000

-- What the minute still owes of its tokens: it pays them off evenly.
local function owed(state, limit, now)
  return math.max(0, tonumber(state[2] or 0) - (now - tonumber(state[3] or now)) * limit / MINUTE)
end

local function extend(key, us)
  local ms = math.min(math.ceil(us / 1000) + 1000, 86400000)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, int(ms)) end
end

local FIELDS = {'requests_us', 'tokens', 'tokens_us', 'day', 'day_tokens'}

-- name: admit
-- KEYS: hashes, one for each subject
-- ARGV: of each subject: requests per minute, tokens per minute, tokens per day; 0 for no limit
-- Returns {wait (us; 0: charged), and for each limit: what is left, seconds until all of it is there again}.
local now, wait = now_us(), 0
local left, charged = {}, {}
for i, key in ipairs(KEYS) do
  local requests, tokens, daily = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local state = redis.call('HMGET', key, unpack(FIELDS))
  if requests > 0 then
    -- Whole microseconds, so that sums are exact.
    local each = math.floor(MINUTE / requests)
    local ahead = math.max(0, tonumber(state[1] or 0) - now)
    local room = each * (requests - 1) - ahead
    if room < 0 then wait = math.max(wait, -room) else charged[key] = now + ahead + each end
    left[#left + 1] = {math.floor(room / each) + 1, ahead, each}
  end
  if tokens > 0 then
    local debt = owed(state, tokens, now)
    if debt >= tokens then wait = math.max(wait, (debt - tokens + 1) * MINUTE / tokens) end
    left[#left + 1] = {math.floor(tokens - debt), debt * MINUTE / tokens, 0}
  end
  if daily > 0 then
    local used = tonumber(state[4] or 0) == math.floor(now / DAY) and tonumber(state[5]) or 0
    if used >= daily then wait = math.max(wait, DAY - now % DAY) end
    left[#left + 1] = {daily - used, DAY - now % DAY, 0}
  end
end
local reply = {int(math.ceil(wait))}
for _, one in ipairs(left) do
  local taken = wait == 0 and one[3] or 0
  reply[#reply + 1] = int(one[1] - (taken > 0 and 1 or 0))
  reply[#reply + 1] = int(math.ceil((one[2] + taken) / 1000000))
end
if wait > 0 then return reply end
for key, until_us in pairs(charged) do
  redis.call('HSET', key, 'requests_us', int(until_us))
  extend(key, until_us - now)
end
return reply

-- name: spend
-- KEYS: hashes, one for each subject
-- ARGV: tokens, generated tokens, and of each subject: tokens per minute, tokens per day
local now, spent, generated = now_us(), tonumber(ARGV[1]), tonumber(ARGV[2])
for i, key in ipairs(KEYS) do
  local tokens, daily = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
  local state = redis.call('HMGET', key, unpack(FIELDS))
  if tokens > 0 then
    local debt = math.min(owed(state, tokens, now) + spent, tokens * 1440)
    redis.call('HSET', key, 'tokens', string.format('%.3f', debt), 'tokens_us', int(now))
    extend(key, debt * MINUTE / tokens)
  end
  if daily > 0 then
    local day = math.floor(now / DAY)
    local used = tonumber(state[4] or 0) == day and tonumber(state[5]) or 0
    redis.call('HSET', key, 'day', int(day), 'day_tokens', int(used + generated))
    extend(key, DAY - now % DAY)
  end
end
