-- The circuit breaker. api/breaker/breaker_rules.py has the same rules in Python; a test runs both side by side.
-- KEYS[1] hash    rag:cb:{name}          state, epoch, since_ms, until_ms, forced, counts ...
-- KEYS[2] hash    rag:cb:{name}:window   <second>:ok|slow|fail|slowfail -> count
-- KEYS[3] zset    rag:cb:{name}:permits  token -> end of its lease (ms)
-- KEYS[4] stream  rag:cb:{name}:log      one entry per change of state, and when the backend is drained or resumed

local LOG_LENGTH = 1000

local STATES = {CLOSED = true, OPEN = true, HALF_OPEN = true}

-- Reads the breaker's hash as numbers and strings. If the hash is missing (first use, FLUSHALL) or its state is
-- unknown, the breaker starts CLOSED in a new epoch.
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

-- Changes the state: starts a new epoch, clears the window and the permits, and adds an entry to the log.
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

-- The end of every reply: state, epoch, how long to reject calls from now on (ms), the override.
local function position(s, now, wait)
  if not wait then wait = s.state == 'OPEN' and s.until_ms - now or 0 end
  return s.state, int(s.epoch), int(math.max(0, wait)), s.forced
end

-- name: admit
-- Decides whether one call may go to Ollama.
-- ARGV: token, worker, lease_ms, half_open_max_calls, timeout_ms
-- Returns {granted 0|1, probe 0|1, permits whose lease expired, state, epoch, wait_ms, forced}
local token, worker = ARGV[1], ARGV[2]
local lease, permits, timeout = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local now = now_ms()
local s = load_state(now)

if s.forced == 'OPEN' then return {0, 0, 0, position(s, now, timeout)} end
if s.state == 'CLOSED' then return {1, 0, 0, position(s, now)} end
if s.state == 'OPEN' then
  if now < s.until_ms then return {0, 0, 0, position(s, now)} end
  move(s, 'HALF_OPEN', 'wait_elapsed', worker, now, 0)
end

local lost = redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
if lost > 0 then redis.call('HINCRBY', KEYS[1], 'half_open_lost', lost) end
if redis.call('ZCARD', KEYS[3]) < permits then
  redis.call('ZADD', KEYS[3], now + lease, token)
  redis.call('HINCRBY', KEYS[1], 'half_open_probes', 1)
  return {1, 1, lost, position(s, now)}
end
local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
return {0, 0, lost, position(s, now, math.min(250, tonumber(first[2]) - now))}

-- name: record
-- Records the outcomes of calls.
-- ARGV: epoch, token, worker, outcomes (oldest first: o ok, s slow, f failed, F slow and failed, i ignored), rejected,
--       enabled 0|1, failure_threshold, timeout_ms, timeout_max_ms, half_open_max_calls, minimum_calls,
--       failure_rate, slow_rate, window_s, stable_ms
-- Returns {stale 0|1, changed 0|1, state, epoch, wait_ms, forced}
local epoch, token, worker, outcomes, rejected = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local enabled, threshold = ARGV[6] == '1', tonumber(ARGV[7])
local timeout, timeout_max, permits = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local minimum_calls, failure_rate, slow_rate = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local window_s, stable = tonumber(ARGV[14]), tonumber(ARGV[15])
local KINDS = {o = 'ok', s = 'slow', f = 'fail', F = 'slowfail'}
local now = now_ms()
local s = load_state(now)

local function count(field, by)
  if by > 0 then redis.call('HINCRBY', KEYS[1], field, by) end
end

local function open(reason, counts)
  local opens
  if s.state == 'HALF_OPEN' then
    opens = s.opens_in_a_row + 1
  elseif now - s.since_ms >= stable then
    opens = 1
  else
    opens = math.max(1, s.opens_in_a_row)
  end
  redis.call('HSET', KEYS[1], 'opens_in_a_row', int(opens))
  local wait = math.min(math.max(timeout_max, timeout), timeout * 2 ^ math.min(opens - 1, 30))
  move(s, 'OPEN', reason, worker, now, wait, counts)
end

local held = token ~= '' and redis.call('ZREM', KEYS[3], token) == 1
-- Even an increment by 0 is written: an empty report proves that Redis accepts writes.
redis.call('HINCRBY', KEYS[1], 'rejected_calls', rejected)
if outcomes == '' then return {0, 0, position(s, now)} end
-- After a lost state (`init`) the breaker is CLOSED and still accepts outcomes from the epoch before.
if (epoch ~= s.epoch and s.reason ~= 'init') or (s.state == 'HALF_OPEN' and not held) then
  count('stale_results', #outcomes)
  return {1, 0, position(s, now)}
end

local seen = {o = 0, s = 0, f = 0, F = 0, i = 0}
local consecutive, peak = s.consecutive_failures, s.consecutive_failures
for letter in outcomes:gmatch('.') do
  seen[letter] = seen[letter] + 1
  if letter == 'f' or letter == 'F' then
    consecutive = consecutive + 1
    peak = math.max(peak, consecutive)
  elseif letter ~= 'i' then
    consecutive = 0
  end
end
count('successful_calls', seen.o + seen.s)
count('failed_calls', seen.f + seen.F)
count('slow_calls', seen.s + seen.F)
count('ignored_calls', seen.i)
if seen.f + seen.F > 0 then redis.call('HSET', KEYS[1], 'last_failure_ms', int(now)) end

if s.state == 'HALF_OPEN' then
  local outcome = outcomes:sub(-1)
  if outcome == 'f' or outcome == 'F' then
    open('probe_failed')
    return {0, 1, position(s, now)}
  end
  if outcome == 'i' then return {0, 0, position(s, now)} end
  local ok = redis.call('HINCRBY', KEYS[1], 'half_open_ok', 1)
  local slow = redis.call('HINCRBY', KEYS[1], 'half_open_slow', outcome == 's' and 1 or 0)
  if ok < permits then return {0, 0, position(s, now)} end
  if slow * 100 >= slow_rate * ok then
    open('probes_slow')
  else
    move(s, 'CLOSED', 'probes_succeeded', worker, now, 0)
  end
  return {0, 1, position(s, now)}
end
if s.state ~= 'CLOSED' then return {0, 0, position(s, now)} end

-- CLOSED: count the outcomes, drop old buckets, then decide whether to open.
local second = math.floor(now / 1000)
for letter, kind in pairs(KINDS) do
  if seen[letter] > 0 then redis.call('HINCRBY', KEYS[2], int(second) .. ':' .. kind, seen[letter]) end
end
redis.call('HSET', KEYS[1], 'consecutive_failures', int(consecutive))
local total, failed, slow = 0, 0, 0
local window = redis.call('HGETALL', KEYS[2])
for i = 1, #window, 2 do
  local bucket, kind = window[i]:match('^(%d+):(%a+)$')
  local calls = tonumber(window[i + 1])
  -- A bucket of another form belongs to a later release.
  if bucket and tonumber(bucket) <= second - window_s then
    redis.call('HDEL', KEYS[2], window[i])
  elseif bucket then
    total = total + calls
    if kind == 'fail' or kind == 'slowfail' then failed = failed + calls end
    if kind == 'slow' or kind == 'slowfail' then slow = slow + calls end
  end
end
if not enabled or s.forced ~= '' then return {0, 0, position(s, now)} end
local counts = {'total', int(total), 'failed', int(failed), 'slow', int(slow), 'consecutive', int(peak)}
local reason
if peak >= threshold then
  reason = 'consecutive_failures'
elseif total >= minimum_calls and failed * 100 >= failure_rate * total then
  reason = 'failure_rate'
elseif total >= minimum_calls and slow * 100 >= slow_rate * total then
  reason = 'slow_call_rate'
end
if not reason then return {0, 0, position(s, now)} end
open(reason, counts)
return {0, 1, position(s, now)}

-- name: renew
-- Renews a prober's permit.
-- ARGV: token, lease_ms
-- Returns 1, or 0 if the permit is gone.
local now = now_ms()
local ends = redis.call('ZSCORE', KEYS[3], ARGV[1])
if not ends or tonumber(ends) <= now then return 0 end
redis.call('ZADD', KEYS[3], 'XX', now + tonumber(ARGV[2]), ARGV[1])
return 1

-- name: read
-- Reads the whole breaker at one moment. Changes nothing.
-- ARGV: window_s
-- Returns {now_ms, calls in the window, failed, slow, permits in use, field, value, field, value ...}
local now = now_ms()
local total, failed, slow = 0, 0, 0
local window = redis.call('HGETALL', KEYS[2])
for i = 1, #window, 2 do
  local bucket, kind = window[i]:match('^(%d+):(%a+)$')
  local calls = tonumber(window[i + 1])
  if bucket and tonumber(bucket) > math.floor(now / 1000) - tonumber(ARGV[1]) then
    total = total + calls
    if kind == 'fail' or kind == 'slowfail' then failed = failed + calls end
    if kind == 'slow' or kind == 'slowfail' then slow = slow + calls end
  end
end
local reply = {int(now), total, failed, slow, redis.call('ZCOUNT', KEYS[3], '(' .. int(now), '+inf')}
for _, value in ipairs(redis.call('HGETALL', KEYS[1])) do reply[#reply + 1] = value end
return reply

-- name: override
-- Forces a state, or resets the breaker.
-- ARGV: action OPEN|CLOSED|RESET, who
-- Returns {state, epoch, wait_ms, forced}
local action, by = ARGV[1], ARGV[2]
local now = now_ms()
local s = load_state(now)
if action == 'RESET' then
  move(s, 'CLOSED', 'reset', by, now, 0)
  local drained, drained_ms = unpack(redis.call('HMGET', KEYS[1], 'drained', 'drained_ms'))
  redis.call('DEL', KEYS[1])
  if drained then redis.call('HSET', KEYS[1], 'drained', drained, 'drained_ms', drained_ms or '0') end
  redis.call('HSET', KEYS[1], 'state', 'CLOSED', 'epoch', int(s.epoch), 'since_ms', int(now), 'until_ms', int(now),
    'reason', 'reset', 'by', by, 'forced', '')
  s.forced = ''
else
  move(s, action, action == 'OPEN' and 'forced_open' or 'forced_close', by, now, 0)
  redis.call('HSET', KEYS[1], 'forced', action)
  s.forced = action
end
return {position(s, now)}

-- name: drain
-- Marks the backend as drained, or no longer. The state, the epoch and the counts stay as they are. Once a backend has
-- been drained the field `drained` stays, so that its absence means lost data (FLUSHALL): then a worker that knows of
-- the drain restores it. Workers of an older release delete the field when they resume a backend. The log shows that.
-- ARGV: address of the backend, or '' to resume it; who; 1 to restore a drain that was lost, else 0
-- Returns 1 if that changed something, else 0.
local address, by = ARGV[1], ARGV[2]
local now = now_ms()
local s = load_state(now)
local before = redis.call('HGET', KEYS[1], 'drained')

-- Returns whether the last entry about a drain says that it has ended.
local function is_resumed()
  for _, entry in ipairs(redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', LOG_LENGTH)) do
    for i = 1, #entry[2], 2 do
      local value = entry[2][i + 1]
      if entry[2][i] == 'reason' and (value == 'resumed' or value == 'drained') then return value == 'resumed' end
    end
  end
  return false
end

if before == address or (ARGV[3] == '1' and before) then return 0 end
if ARGV[3] == '1' and is_resumed() then
  redis.call('HSET', KEYS[1], 'drained', '', 'drained_ms', '0')
  return 0
end
redis.call('HSET', KEYS[1], 'drained', address, 'drained_ms', address == '' and '0' or int(now))
if not before and address == '' then return 0 end
redis.call('XADD', KEYS[4], 'MAXLEN', '~', LOG_LENGTH, '*', 'from', s.state, 'to', s.state,
  'reason', address == '' and 'resumed' or 'drained', 'by', by, 'epoch', int(s.epoch), 'wait_ms', '0',
  'at_ms', int(now))
return 1
