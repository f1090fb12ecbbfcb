-- Shared by the breaker's scripts; api/breaker/rules.py is the same in Python.
-- KEYS[1] hash    rag:cb:{name}          state, epoch, since_ms, until_ms, forced, counts ...
-- KEYS[2] hash    rag:cb:{name}:window   <second>:ok|slow|fail|slowfail -> count
-- KEYS[3] zset    rag:cb:{name}:permits  token -> end of its lease (ms)
-- KEYS[4] stream  rag:cb:{name}:log      one entry a transition

local LOG_LENGTH = 1000

local STATES = {CLOSED = true, OPEN = true, HALF_OPEN = true}

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function int(number)
  return string.format('%d', number)
end

-- The breaker's hash as numbers and strings. A missing one (first use, FLUSHALL) starts CLOSED in a new epoch, and so
-- does one whose state nobody knows.
local function load_state(now)
  local names = {'state', 'epoch', 'since_ms', 'until_ms', 'forced', 'consecutive_failures', 'opens_in_a_row',
    'half_open_ok', 'half_open_slow', 'half_open_probes', 'reason'}
  local values = redis.call('HMGET', KEYS[1], unpack(names))
  local s = {}
  for i, name in ipairs(names) do s[name] = values[i] end
  if not STATES[s.state] then
    s.state, s.epoch, s.since_ms, s.until_ms, s.forced, s.reason = 'CLOSED', now, now, now, '', 'init'
    redis.call('HSET', KEYS[1], 'state', s.state, 'epoch', int(now), 'since_ms', int(now), 'until_ms', int(now),
      'forced', '', 'reason', 'init')
  end
  for i = 2, #names do
    if names[i] ~= 'forced' and names[i] ~= 'reason' then s[names[i]] = tonumber(s[names[i]] or 0) or 0 end
  end
  s.forced = s.forced or ''
  return s
end

-- Moves to another state: a new epoch, an empty window, no permits, an entry in the log.
local function move(s, to, reason, by, now, wait, counts)
  local epoch = math.max(s.epoch + 1, now)
  redis.call('HSET', KEYS[1], 'state', to, 'epoch', int(epoch), 'since_ms', int(now), 'until_ms', int(now + wait),
    'consecutive_failures', '0', 'half_open_ok', '0', 'half_open_slow', '0', 'half_open_probes', '0',
    'reason', reason, 'by', by)
  if to == 'OPEN' then redis.call('HSET', KEYS[1], 'open_ms', int(wait)) end
  if to == 'HALF_OPEN' then redis.call('HSET', KEYS[1], 'half_open_at_ms', int(now)) end
  redis.call('DEL', KEYS[2], KEYS[3])
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', LOG_LENGTH, '*', 'from', s.state, 'to', to, 'reason', reason, 'by', by,
    'epoch', int(epoch), 'wait_ms', int(wait), 'at_ms', int(now), 'probes', int(s.half_open_probes),
    unpack(counts or {}))
  s.state, s.epoch, s.since_ms, s.until_ms = to, epoch, now, now + wait
  s.consecutive_failures, s.half_open_ok, s.half_open_slow, s.half_open_probes = 0, 0, 0, 0
end

-- A position is what every reply ends with: state, epoch, how long to reject from now, the override.
local function position(s, now, wait)
  if not wait then wait = s.state == 'OPEN' and s.until_ms - now or 0 end
  return s.state, int(s.epoch), int(math.max(0, wait)), s.forced
end
