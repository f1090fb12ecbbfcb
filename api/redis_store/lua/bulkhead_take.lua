-- Asks for a permit. Keys, ARGV[1..3]: see bulkhead_common.lua.
-- ARGV[4..]: priority, tenant as in tickets, worker, hex digits of the new ticket, max_queue
-- Returns {0 rejected | 1 granted | 2 in line, ticket, retry_after_ms}
local priority, tenant, max_queue = ARGV[4], ARGV[5], tonumber(ARGV[8])
local ticket = string.format('%s %s %s%06d %s %s', priority, tenant, time[1], time[2], ARGV[6], ARGV[7])

-- Whose place in a full line this one may take: the newest of the tenant that has the most, background work first.
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

-- Whether anybody in line is before it: behind a free permit only background work waits.
local function anybody_before()
  if priority ~= 'user' then return redis.call('ZCARD', KEYS[2]) > 0 end
  return #redis.call('ZRANGEBYLEX', KEYS[2], '[user ', '(user!', 'LIMIT', 0, 1) > 0
end

drop_ended()
hand_out()
if not anybody_before() and is_free(priority) then
  lend(KEYS[1], ticket)
  return {1, ticket, 0}
end
local wait = retry_after()
if redis.call('ZCARD', KEYS[2]) >= max_queue then
  local victim = displaced()
  if not victim then
    count('rejected_queue_full', 1)
    return {0, '', wait}
  end
  dequeue(victim)
  count('rejected_displaced', 1)
  tell('displaced', victim)
end
enqueue(ticket)
return {2, ticket, wait}
