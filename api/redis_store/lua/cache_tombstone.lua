-- Notes that answers asked for until now are not to be stored any more, before what is stored of them is deleted; or,
-- by `corpus:<tenant>`, only after they have been checked again.
-- KEYS[1] hash  rag:invalidated, which answers -> when (ms)
-- ARGV: lifetime_ms, field, field ...: `all`, `tenant:<tenant>`, `question:<digest>`, `source:<document id>`,
-- `corpus:<tenant>`
-- Returns now_ms. Fields older than the lifetime go: no generation is that old. `began`, since when there are marks, stays.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lifetime = tonumber(ARGV[1])

local old = {}
local noted = redis.call('HGETALL', KEYS[1])
for i = 1, #noted, 2 do
  if noted[i] ~= 'began' and tonumber(noted[i + 1]) < now - lifetime then old[#old + 1] = noted[i] end
end
for i = 1, #old do redis.call('HDEL', KEYS[1], old[i]) end

local text = string.format('%d', now)
for i = 2, #ARGV do redis.call('HSET', KEYS[1], ARGV[i], text) end
redis.call('PEXPIRE', KEYS[1], lifetime)
return text
