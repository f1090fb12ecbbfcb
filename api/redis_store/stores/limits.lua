-- Rate limits and budgets of keys and tenants, exact for the whole fleet.
--   hash  rag:limit:{<owner>}:<subject>  requests_us: when the requests so far are paid off; tokens, tokens_us: how
--         many the minute still owes, and as of when; day, day_tokens: the tokens of a day since 1970; month,
--         month_tokens: those of a month since January of the year 0
--   zset  rag:limit:{<owner>}:<subject>:streams  open stream -> when its lease ends (us)
local MINUTE, DAY = 60000000, 86400000000

-- How long until the requests so far are paid off (us): up to a minute. If it is more than two, the clock was set back,
-- and the count is void: it would refuse until the clock is there again.
local function ahead_of(now, requests_us)
  local ahead = math.max(0, tonumber(requests_us or 0) - now)
  return ahead <= 2 * MINUTE and ahead or 0
end

-- What the minute still owes of its tokens: it pays them off evenly. Void like the requests.
local function owed(state, limit, now)
  if tonumber(state[3] or now) > now + MINUTE then return 0 end
  return math.max(0, tonumber(state[2] or 0) - (now - tonumber(state[3] or now)) * limit / MINUTE)
end

local function extend(key, us)
  local ms = math.min(math.ceil(us / 1000) + 1000, 32 * 86400000)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, int(ms)) end
end

-- The days from 1970 to the first of a month since January of the year 0 (Gregorian; a year begins in March).
local function first_day(month)
  local year, from_march = math.floor((month - 2) / 12), (month - 2) % 12
  local leap = math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400)
  return year * 365 + leap + math.floor((153 * from_march + 2) / 5) - 719468
end

-- The month of now, and when it ends (us).
local function month_of(now)
  local day = math.floor(now / DAY)
  local month = math.floor(day / 30.436875) + 1970 * 12
  while first_day(month + 1) <= day do month = month + 1 end
  while first_day(month) > day do month = month - 1 end
  return month, first_day(month + 1) * DAY
end

local FIELDS = {'requests_us', 'tokens', 'tokens_us', 'day', 'day_tokens', 'month', 'month_tokens'}

-- name: admit
-- KEYS: hashes, one for each subject
-- ARGV: of each subject: requests per minute, tokens per minute, per day, per month; 0 for no limit
-- Returns {wait (us; 0: charged), and for each limit: what is left, seconds until all of it is there again}.
local now, wait = now_us(), 0
local left, charged = {}, {}
local function budget(remaining, us)
  if remaining <= 0 then wait = math.max(wait, us) end
  left[#left + 1] = {remaining, us, 0}
end
for i, key in ipairs(KEYS) do
  local requests, tokens = tonumber(ARGV[4 * i - 3]), tonumber(ARGV[4 * i - 2])
  local daily, monthly = tonumber(ARGV[4 * i - 1]), tonumber(ARGV[4 * i])
  local state = redis.call('HMGET', key, unpack(FIELDS))
  if requests > 0 then
    -- Whole microseconds, so that sums are exact.
    local each = math.floor(MINUTE / requests)
    local ahead = ahead_of(now, state[1])
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
    budget(daily - used, DAY - now % DAY)
  end
  if monthly > 0 then
    local month, ends = month_of(now)
    budget(monthly - (tonumber(state[6] or 0) == month and tonumber(state[7]) or 0), ends - now)
  end
end
local reply = {math.ceil(wait)}
for _, one in ipairs(left) do
  local taken = wait == 0 and one[3] or 0
  reply[#reply + 1] = one[1] - (taken > 0 and 1 or 0)
  reply[#reply + 1] = math.ceil((one[2] + taken) / 1000000)
end
if wait > 0 then return reply end
for key, until_us in pairs(charged) do
  redis.call('HSET', key, 'requests_us', int(until_us))
  extend(key, until_us - now)
end
return reply

-- name: spend
-- KEYS: hashes, one for each subject
-- ARGV: tokens, generated tokens, and of each subject: requests per minute, tokens per minute, per day, per month
local now, spent, generated = now_us(), tonumber(ARGV[1]), tonumber(ARGV[2])
for i, key in ipairs(KEYS) do
  local tokens, daily, monthly = tonumber(ARGV[4 * i]), tonumber(ARGV[4 * i + 1]), tonumber(ARGV[4 * i + 2])
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
  if monthly > 0 then
    local month, ends = month_of(now)
    local used = tonumber(state[6] or 0) == month and tonumber(state[7]) or 0
    redis.call('HSET', key, 'month', int(month), 'month_tokens', int(used + generated))
    extend(key, ends - now)
  end
end

-- name: open_stream
-- KEYS: zsets of open streams, one for each subject
-- ARGV: stream, lease (us), and of each subject: concurrent streams
-- Returns 0 if the stream is open, else the number of the first subject that has too many.
local now, lease = now_us(), tonumber(ARGV[2])
for i, key in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', int(now))
  if redis.call('ZCARD', key) >= tonumber(ARGV[2 + i]) then return i end
end
for _, key in ipairs(KEYS) do
  redis.call('ZADD', key, int(now + lease), ARGV[1])
  redis.call('PEXPIRE', key, int(math.ceil(lease / 1000)))
end
return 0

-- name: renew_streams
-- KEYS[1] zset of open streams
-- ARGV: lease (us), streams ...
local now = now_us()
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], int(now + ARGV[1]), ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], int(math.ceil(ARGV[1] / 1000)))
