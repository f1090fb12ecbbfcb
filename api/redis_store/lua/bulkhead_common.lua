-- Shared by the bulkhead's scripts; api/bulkhead/rules.py is the same in Python. api/bulkhead/rules.py has the tickets.
-- KEYS[1] zset  rag:bulkhead:{name}          ticket -> end of its lease (ms): the permits
-- KEYS[2] zset  rag:bulkhead:{name}:queue    ticket -> 0: who waits, in the order of their bytes
-- KEYS[3] zset  rag:bulkhead:{name}:waiting  ticket -> end of its lease (ms): who of these is still there
-- KEYS[4] hash  rag:bulkhead:{name}:stats    service_ms, user_turn, background_turn, counts
-- ARGV[1] limit and, of it, reserve: '8 2', ARGV[2] lease_ms, ARGV[3] what the channel of a worker begins with
-- PUBLISH <channel><worker>: 'granted <ticket>' or 'displaced <ticket>'

local STATS_MS = 30 * 24 * 3600 * 1000
local SMOOTHING = 0.1
local limit, reserve = ARGV[1]:match('^(%d+) (%d+)$')
limit, reserve = tonumber(limit), tonumber(reserve)
local lease, channel = tonumber(ARGV[2]), ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function count(name, by)
  redis.call('HINCRBY', KEYS[4], name, by)
  redis.call('PEXPIRE', KEYS[4], STATS_MS)
end

local function note(name, value)
  redis.call('HSET', KEYS[4], name, value)
  redis.call('PEXPIRE', KEYS[4], STATS_MS)
end

-- Renews the lease of a ticket in one of the sorted sets, and the lifetime of the set: it outlives its leases, so that
-- those that end are counted.
local function lend(key, ticket)
  redis.call('ZADD', key, now + lease, ticket)
  redis.call('PEXPIRE', key, lease * 2)
end

local function enqueue(ticket)
  redis.call('ZADD', KEYS[2], 0, ticket)
  redis.call('PEXPIRE', KEYS[2], lease * 2)
  lend(KEYS[3], ticket)
end

local function dequeue(ticket)
  redis.call('ZREM', KEYS[2], ticket)
  redis.call('ZREM', KEYS[3], ticket)
end

local function tell(what, ticket)
  redis.call('PUBLISH', channel .. ticket:match('^%S+ %S+ %S+ (%S+)'), what .. ' ' .. ticket)
end

-- Drops the tickets of those who are gone.
local function drop_ended()
  local lost = redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
  if lost > 0 then count('lost_permits', lost) end
  if redis.call('ZCARD', KEYS[2]) == 0 then return end
  for _, ticket in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now)) do dequeue(ticket) end
end

-- The next in turn: users first; then the tenant after the one served last, its oldest ticket.
local function following()
  for _, priority in ipairs({'user', 'background'}) do
    local turn = redis.call('HGET', KEYS[4], priority .. '_turn')
    local first, past = '[' .. priority .. ' ', '(' .. priority .. '!'
    local found = {}
    if turn then
      found = redis.call('ZRANGEBYLEX', KEYS[2], first .. turn .. '!', past, 'LIMIT', 0, 1)
    end
    if not found[1] then found = redis.call('ZRANGEBYLEX', KEYS[2], first, past, 'LIMIT', 0, 1) end
    if found[1] then return found[1], priority end
  end
end

-- Whether there is a permit for a call of this priority: the reserve is for users alone.
local function is_free(priority)
  if redis.call('ZCARD', KEYS[1]) >= limit then return false end
  if priority == 'user' or reserve == 0 then return true end
  local behind = 0
  for _, ticket in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if ticket:sub(1, 11) == 'background ' then behind = behind + 1 end
  end
  return behind < limit - reserve
end

-- Free permits go to those who wait. Returns their tickets.
local function hand_out()
  local granted = {}
  if redis.call('ZCARD', KEYS[2]) == 0 then return granted end
  for _ = redis.call('ZCARD', KEYS[1]) + 1, limit do
    local ticket, priority = following()
    if not ticket or not is_free(priority) then break end
    dequeue(ticket)
    lend(KEYS[1], ticket)
    note(priority .. '_turn', ticket:match('^%S+ (%S+)'))
    tell('granted', ticket)
    granted[#granted + 1] = ticket
  end
  return granted
end

-- How long the line takes for one who comes now (ms).
local function retry_after()
  local service = tonumber(redis.call('HGET', KEYS[4], 'service_ms') or 0)
  return math.ceil(service * (redis.call('ZCARD', KEYS[2]) + 1) / limit)
end
