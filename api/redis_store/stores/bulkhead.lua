-- The bulkhead: permits for calls to Ollama, and the queue for them.
-- api/bulkhead/bulkhead_rules.py has the same rules in Python and describes tickets.
-- KEYS[1] zset  rag:bulkhead:{name}          ticket -> end of its lease (ms): the permits
-- KEYS[2] zset  rag:bulkhead:{name}:queue    ticket -> 0: the queue, in byte order
-- KEYS[3] zset  rag:bulkhead:{name}:waiting  ticket -> end of its lease (ms): the tickets in the queue that are alive
-- KEYS[4] hash  rag:bulkhead:{name}:stats    service_ms, <priority>_turn, batch_us (when a batch call last got a
--                                            permit), batch_next_us (when one may go first, after a long one), counts
-- ARGV[1] limit, reserve, batch_after_ms, and the permits that a tenant may hold: '8 2 10000 6'   ARGV[2] lease_ms
-- ARGV[3] prefix of the workers' channels
-- PUBLISH <prefix><worker>: 'granted <ticket>' or 'displaced <ticket>'

local STATS_MS = 30 * 24 * 3600 * 1000
local SMOOTHING = 0.1
local BATCH_PART = 4
local PRIORITIES = {'user', 'batch', 'background'}
local limit, reserve, batch_after, most = ARGV[1]:match('^(%d+) (%d+) (%d+) (%d+)$')
limit, reserve, batch_after, most = tonumber(limit), tonumber(reserve), tonumber(batch_after) * 1000, tonumber(most)
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

-- Returns whether a tenant (as in tickets) holds as many permits as it may.
local function has_share(tenant)
  if most >= limit then return false end
  local held = 0
  for _, ticket in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if ticket:match('^%S+ (%S+)') == tenant then held = held + 1 end
  end
  return held >= most
end

-- Returns the next ticket of a priority: that of the tenant after the last one served, and its oldest. Tenants that
-- hold their share are passed over.
local function next_of(priority)
  local turn = redis.call('HGET', KEYS[4], priority .. '_turn')
  local first, past = '[' .. priority .. ' ', '(' .. priority .. '!'
  local function between(from, to)
    while true do
      local ticket = redis.call('ZRANGEBYLEX', KEYS[2], from, to, 'LIMIT', 0, 1)[1]
      local tenant = ticket and ticket:match('^%S+ (%S+)')
      if not ticket or not has_share(tenant) then return ticket end
      from = first .. tenant .. '!'
    end
  end
  local after = turn and first .. turn .. '!'
  return after and between(after, past) or between(first, past)
end

-- Returns how many tickets of this priority and of higher ones wait.
local function ahead(priority)
  local found = 0
  for _, kind in ipairs(PRIORITIES) do
    found = found + redis.call('ZLEXCOUNT', KEYS[2], '[' .. kind .. ' ', '(' .. kind .. '!')
    if kind == priority then return found end
  end
end

-- Returns whether a permit is free for a call of this priority. Only users may use the reserve.
local function is_free(priority)
  if redis.call('ZCARD', KEYS[1]) >= limit then return false end
  if priority == 'user' or reserve == 0 then return true end
  local behind = 0
  for _, ticket in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if ticket:sub(1, 5) ~= 'user ' then behind = behind + 1 end
  end
  return behind < limit - reserve
end

-- Returns the batch ticket that goes before users now, if any: it and all batch calls have waited for `batch_after`,
-- none is running, and the last one was not too long.
local function overdue()
  local due = micros - batch_after
  if batch_after == 0 then return end
  local last, following = unpack(redis.call('HMGET', KEYS[4], 'batch_us', 'batch_next_us'))
  if tonumber(last or 0) > due or tonumber(following or 0) > micros then return end
  for _, running in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if running:sub(1, 6) == 'batch ' then return end
  end
  local ticket = next_of('batch')
  if ticket and tonumber(ticket:match('^%S+ %S+ (%d+)')) <= due and is_free('batch') then return ticket end
end

-- Returns the next ticket and its priority: the overdue batch ticket, then users first.
local function next_ticket()
  local found = overdue()
  if found then return found, 'batch' end
  for _, priority in ipairs(PRIORITIES) do
    found = next_of(priority)
    if found then return found, priority end
  end
end

-- Grants a permit.
local function grant(ticket, priority)
  set_lease(KEYS[1], ticket)
  if priority == 'batch' then note('batch_us', int(micros)) end
end

-- Grants free permits to waiting tickets. Returns these tickets.
local function grant_free()
  local granted = {}
  if redis.call('ZCARD', KEYS[2]) == 0 then return granted end
  for _ = redis.call('ZCARD', KEYS[1]) + 1, limit do
    local ticket, priority = next_ticket()
    if not ticket or not is_free(priority) then break end
    dequeue(ticket)
    grant(ticket, priority)
    note(priority .. '_turn', ticket:match('^%S+ (%S+)'))
    notify('granted', ticket)
    granted[#granted + 1] = ticket
  end
  return granted
end

local function service_ms() return tonumber(redis.call('HGET', KEYS[4], 'service_ms') or 0) end

-- Returns the queued tickets' positions, from 1: tenants take turns within each priority. Linear in the queue.
local function positions()
  local lines, order, found = {}, {}, {}
  for _, ticket in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    local place, priority = ticket:match('^((%S+) %S+)')
    if not lines[place] then
      lines[place] = {}
      order[priority] = order[priority] or {}
      order[priority][#order[priority] + 1] = place
    end
    lines[place][#lines[place] + 1] = ticket
  end
  local before = 0
  for _, priority in ipairs(PRIORITIES) do
    local turn = redis.call('HGET', KEYS[4], priority .. '_turn')
    local first, served, turns, passed = '[' .. priority .. ' ', 0, {}, {}
    if turn then served = redis.call('ZLEXCOUNT', KEYS[2], first, '(' .. priority .. ' ' .. turn .. '!') end
    for _, place in ipairs(order[priority] or {}) do  -- those up to the tenant served last come at the end
      local into = served > 0 and passed or turns
      into[#into + 1] = lines[place]
      served = served - #lines[place]
    end
    for _, line in ipairs(passed) do turns[#turns + 1] = line end
    local round = 1
    while #turns > 0 do
      local remaining = {}
      for _, line in ipairs(turns) do
        before = before + 1
        found[line[round]] = before
        if line[round + 1] then remaining[#remaining + 1] = line end
      end
      turns, round = remaining, round + 1
    end
  end
  return found
end

-- Lets users pass for a while after a batch call, so that those that go first use one permit in BATCH_PART over time.
local function pause_batch(held)
  local pause = micros + math.floor(held * 1000 * BATCH_PART / limit) - held * 1000
  if pause > tonumber(redis.call('HGET', KEYS[4], 'batch_next_us') or 0) then note('batch_next_us', int(pause)) end
end

-- name: take
-- Asks for a permit.
-- ARGV[4..]: priority, tenant as in tickets, worker, hex digits of the new ticket, max_queue (-1: the call does not
-- queue)
-- Returns {0 rejected | 1 granted | 2 queued, ticket, retry_after_ms, 1 if a permit was free}
local priority, tenant, max_queue = ARGV[4], ARGV[5], tonumber(ARGV[8])
local ticket = string.format('%s %s %s %s %s', priority, tenant, int(micros), ARGV[6], ARGV[7])

-- The ticket that this one may displace from a full queue: the newest of the tenant that has the most tickets, of the
-- weakest priority.
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
  for i = #PRIORITIES, 1, -1 do
    if PRIORITIES[i] == priority then break end
    local weaker = longest(PRIORITIES[i])
    if weaker then return newest[weaker] end
  end
  local crowded = longest(priority)
  local own = counts[priority .. ' ' .. tenant] or 0
  if crowded and counts[crowded] > own + 1 then return newest[crowded] end
end

-- Returns whether a call of this priority, or of a higher one, waits for a permit that it may hold.
local function is_behind()
  for _, kind in ipairs(PRIORITIES) do
    if next_of(kind) then return true end
    if kind == priority then return false end
  end
end

drop_expired()
grant_free()
local before, free = ahead(priority), is_free(priority)
if free and not has_share(tenant) and not (before > 0 and is_behind()) then
  grant(ticket, priority)
  return {1, ticket, 0, 0}
end
local by_share = free and 1 or 0
local wait = math.ceil(service_ms() * (before + 1) / limit)
if max_queue < 0 then return {0, '', wait, by_share} end
if redis.call('ZCARD', KEYS[2]) >= max_queue then
  local victim = displaced()
  if not victim then
    count('rejected_queue_full', 1)
    count('rejected_' .. priority, 1)
    return {0, '', wait, by_share}
  end
  dequeue(victim)
  count('rejected_displaced', 1)
  count('rejected_' .. victim:match('^%S+'), 1)
  notify('displaced', victim)
end
enqueue(ticket)
return {2, ticket, wait, by_share}

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
    if batch_after > 0 and ticket:sub(1, 6) == 'batch ' then pause_batch(held) end
    local service = service_ms()
    if service > 0 then held = service + (held - service) * SMOOTHING end
    note('service_ms', string.format('%.3f', held))
    count('served', 1)
  end
  if reason ~= '' then
    count('rejected_' .. reason, 1)
    count('rejected_' .. ticket:match('^%S+'), 1)
  end
end
return grant_free()

-- name: renew
-- Renews or restores the leases of one worker's tickets, then grants what expired leases left free.
-- ARGV[4..]: number of its permits, their tickets, its tickets in the queue
-- Returns {tickets that now have a permit, including queued ones that already had one; service_ms; the positions of
-- the tickets in the queue, 0 for one with a permit}
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
local places = {}
if #ARGV > 4 + held then
  local found = positions()
  for i = 5 + held, #ARGV do places[#places + 1] = found[ARGV[i]] or 0 end
end
return {granted, math.ceil(service_ms()), places}

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
