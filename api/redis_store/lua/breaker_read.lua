-- Reads the whole breaker at one moment; changes nothing. Keys: see breaker_common.lua.  ARGV: window_s
-- Returns {now_ms, window total, failed, slow, permits in use, field, value, field, value ...}
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
