-- Reads one entry and the clock, so that its age is judged by Redis's time; and when answers like it were last deleted.
-- KEYS[1] hash  rag:cache:<scope>:<digest>   KEYS[2] hash  rag:invalidated, which answers -> when (ms)
-- ARGV: number of marks, mark ..., names of the fields wanted
-- Returns {now_ms, invalidated_ms (0: never), value, value ...}
local function int(number) return string.format('%d', number) end
local time, marks, last = redis.call('TIME'), tonumber(ARGV[1]), 0
for _, at in ipairs(redis.call('HMGET', KEYS[2], unpack(ARGV, 2, 1 + marks))) do
  if at then last = math.max(last, tonumber(at)) end
end
local reply = {int(time[1] * 1000 + math.floor(time[2] / 1000)), int(last)}
for _, value in ipairs(redis.call('HMGET', KEYS[1], unpack(ARGV, 2 + marks))) do reply[#reply + 1] = value end
return reply
