-- The bulkhead: permits for calls to Ollama, and the queue for them.
-- api/bulkhead/bulkhead_rules.py has the same rules in Python and describes tickets.
-- KEYS[1] zset  rag:bulkhead:{name}          ticket -> end of its lease (ms): the permits
-- KEYS[2] zset  rag:bulkhead:{name}:queue    ticket -> 0: the queue, in byte order
-- KEYS[3] zset  rag:bulkhead:{name}:waiting  ticket -> end of its lease (ms): the tickets in the queue that are alive
-- KEYS[4] hash  rag:bulkhead:{name}:stats    service_ms, user_turn, background_turn, counts
-- ARGV[1] limit and reserve: '8 2'   ARGV[2] lease_ms   ARGV[3] prefix of the workers' channels
-- PUBLISH <prefix><worker>: 'granted <ticket>' or 'displaced <ticket>'

local STATS_MS = 30 * 24 * 3600 * 1000
local SMOOTHING = 0.1
local limit, reserve = ARGV[1]:match('^(%d+) (%d+)$')
limit, reserve = tonumber(limit), tonumber(reserve)
local lease, channel = tonumber(ARGV[2]), ARGV[3]
local micros = now_us()
local now = math.floor(micros / 1000)

local function count(name, by)
  redis.call('HINCRBY', KEYS[4], name, by)
  redis.call('PEXPIRE', KEYS[4], STATS_MS)
end

local function note(name, value)
  redis.call('HSET', KEYS[4], name, value)
  redis.call('PEXPIRE', KEYS[4], STATS_MS)
end

-- Sets or renews the lease of a ticket in a sorted set. The set outlives its leases, so that expired ones are counted.
local function set_lease(key, ticket)
  redis.call('ZADD', key, now + lease, ticket)
  redis.call('PEXPIRE', key, lease * 2)
end

local function enqueue(ticket)
  redis.call('ZADD', KEYS[2], 0, ticket)
  redis.call('PEXPIRE', KEYS[2], lease * 2)
  set_lease(KEYS[3], ticket)
end

local function dequeue(ticket)
  redis.call('ZREM', KEYS[2], ticket)
  redis.call('ZREM', KEYS[3], ticket)
end

local function notify(what, ticket)
  redis.call('PUBLISH', channel .. ticket:match('^%S+ %S+ %S+ (%S+)'), what .. ' ' .. ticket)
end

-- Drops tickets whose lease has expired.
local function drop_expired()
  local lost = redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
  if lost > 0 then count('lost_permits', lost) end
  if redis.call('ZCARD', KEYS[2]) == 0 then return end
  for _, ticket in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now)) do dequeue(ticket) end
end

-- Returns the next ticket and its priority. Users go first, then the tenant after the last one served, then the oldest
-- ticket.
local function next_ticket()
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

-- Returns whether a permit is free for a call of this priority. Only users may use the reserve.
local function is_free(priority)
  if redis.call('ZCARD', KEYS[1]) >= limit then return false end
  if priority == 'user' or reserve == 0 then return true end
  local background = 0
  for _, ticket in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if ticket:sub(1, 11) == 'background ' then background = background + 1 end
  end
  return background < limit - reserve
end

-- Grants free permits to waiting tickets. Returns these tickets.
local function grant_free()
  local granted = {}
  if redis.call('ZCARD', KEYS[2]) == 0 then return granted end
  for _ = redis.call('ZCARD', KEYS[1]) + 1, limit do
    local ticket, priority = next_ticket()
    if not ticket or not is_free(priority) then break end
    dequeue(ticket)
    set_lease(KEYS[1], ticket)
    note(priority .. '_turn', ticket:match('^%S+ (%S+)'))
    notify('granted', ticket)
    granted[#granted + 1] = ticket
  end
  return granted
end

-- Estimates how long a call that arrives now would wait (ms).
local function retry_after()
  local service = tonumber(redis.call('HGET', KEYS[4], 'service_ms') or 0)
  return math.ceil(service * (redis.call('ZCARD', KEYS[2]) + 1) / limit)
end

-- name: take
-- Asks for a permit.
-- ARGV[4..]: priority, tenant as in tickets, worker, hex digits of the new ticket, max_queue (-1: the call does not
-- queue)
-- Returns {0 rejected | 1 granted | 2 queued, ticket, retry_after_ms}
local priority, tenant, max_queue = ARGV[4], ARGV[5], tonumber(ARGV[8])
local ticket = string.format('%s %s %s %s %s', priority, tenant, int(micros), ARGV[6], ARGV[7])

-- The ticket that this one may displace from a full queue: the newest of the tenant that has the most tickets,
-- background work first.
local function displaced()
  local counts, newest, order = {}, {}, {}
  for _, waiting in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    local place = waiting:match('^%S+ %S+')
    if not counts[place] then
      counts[place] = 0
      order[#order + 1] = place
    end
    counts[place] = counts[place] + 1
    newest[place] = waiting
  end
  local function longest(kind)
    local found
    for _, place in ipairs(order) do
      if place:match('^%S+') == kind and (not found or counts[place] > counts[found]) then found = place end
    end
    return found
  end
  local background = priority == 'user' and longest('background')
  if background then return newest[background] end
  local most = longest(priority)
  local own = counts[priority .. ' ' .. tenant] or 0
  if most and counts[most] > own + 1 then return newest[most] end
end

-- Returns whether a ticket in the queue comes first. While a permit is free, only background work waits.
local function is_behind()
  if priority ~= 'user' then return redis.call('ZCARD', KEYS[2]) > 0 end
  return #redis.call('ZRANGEBYLEX', KEYS[2], '[user ', '(user!', 'LIMIT', 0, 1) > 0
end

drop_expired()
grant_free()
if not is_behind() and is_free(priority) then
  set_lease(KEYS[1], ticket)
  return {1, ticket, 0}
end
local wait = retry_after()
if max_queue < 0 then return {0, '', wait} end
if redis.call('ZCARD', KEYS[2]) >= max_queue then
  local victim = displaced()
  if not victim then
    count('rejected_queue_full', 1)
    return {0, '', wait}
  end
  dequeue(victim)
  count('rejected_displaced', 1)
  notify('displaced', victim)
end
enqueue(ticket)
return {2, ticket, wait}

-- name: give
-- Returns permits and places in the queue, then grants what is free.
-- ARGV[4..]: ticket, held_ms (-1: no call was made), reason for a rejection or '', and so on
-- Returns the tickets that now have a permit.
drop_expired()
for i = 4, #ARGV, 3 do
  local ticket, held, reason = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
  redis.call('ZREM', KEYS[1], ticket)
  dequeue(ticket)
  if held >= 0 then
    local service = tonumber(redis.call('HGET', KEYS[4], 'service_ms') or 0)
    if service > 0 then held = service + (held - service) * SMOOTHING end
    note('service_ms', string.format('%.3f', held))
    count('served', 1)
  end
  if reason ~= '' then count('rejected_' .. reason, 1) end
end
return grant_free()

-- name: renew
-- Renews or restores the leases of one worker's tickets, then grants what expired leases left free.
-- ARGV[4..]: number of its permits, their tickets, its tickets in the queue
-- Returns the tickets that now have a permit, including queued ones that already had one.
local held = tonumber(ARGV[4])
for i = 5, 4 + held do set_lease(KEYS[1], ARGV[i]) end
local granted = {}
for i = 5 + held, #ARGV do
  local ends = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if ends then
    set_lease(KEYS[1], ARGV[i])
    granted[#granted + 1] = ARGV[i]
  else
    enqueue(ARGV[i])
  end
end
drop_expired()
for _, ticket in ipairs(grant_free()) do granted[#granted + 1] = ticket end
return granted

-- name: read
-- Reads the whole bulkhead at one moment. Changes nothing.
-- Returns {permits in use, length of the queue, its tickets, field, value, field, value ...}
local reply = {redis.call('ZCOUNT', KEYS[1], '(' .. now, '+inf'), 0}
for _, ticket in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  if tonumber(redis.call('ZSCORE', KEYS[3], ticket) or 0) > now then reply[#reply + 1] = ticket end
end
reply[2] = #reply - 2
for _, value in ipairs(redis.call('HGETALL', KEYS[4])) do reply[#reply + 1] = value end
return reply
