-- Takes the results of calls. Keys: see breaker_common.lua.
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
redis.call('HINCRBY', KEYS[1], 'rejected_calls', rejected) -- by 0 too: an empty report proves that writes are taken
if outcomes == '' then return {0, 0, position(s, now)} end
-- A state that was lost and begun anew (`init`) is CLOSED and takes what workers still report of the epoch before.
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

-- CLOSED: add to the window, drop what left it, judge.
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
  -- A bucket of another form is a later release's.
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
