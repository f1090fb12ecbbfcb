-- Reads one entry and the clock, so that its age is judged by Redis's time.
-- KEYS[1] hash  rag:cache:<scope>:<digest>   ARGV: names of the fields wanted
-- Returns {now_ms, value, value ...}
local time = redis.call('TIME')
local reply = {string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))}
for _, value in ipairs(redis.call('HMGET', KEYS[1], unpack(ARGV))) do reply[#reply + 1] = value end
return reply
