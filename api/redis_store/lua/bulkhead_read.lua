-- Reads the whole bulkhead at one moment; changes nothing. Keys, ARGV[1..3]: see bulkhead_common.lua.
-- Returns {permits in use, number in line, their tickets, field, value, field, value ...}
local reply = {redis.call('ZCOUNT', KEYS[1], '(' .. now, '+inf'), 0}
for _, ticket in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  if tonumber(redis.call('ZSCORE', KEYS[3], ticket) or 0) > now then reply[#reply + 1] = ticket end
end
reply[2] = #reply - 2
for _, value in ipairs(redis.call('HGETALL', KEYS[4])) do reply[#reply + 1] = value end
return reply
