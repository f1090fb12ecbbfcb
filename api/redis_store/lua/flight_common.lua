-- What the scripts of single flight share.
-- A flight is a hash: leader, fence, began_ms, and for each follower `follower:<worker>`, the end of its place (ms).
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)
local function int(number) return string.format('%d', number) end
local FOLLOWER = 'follower:'

-- The workers that follow a flight; those whose place has ended are dropped.
local function followers(flight)
  local found, fields = {}, redis.call('HGETALL', flight)
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, #FOLLOWER) == FOLLOWER then
      if tonumber(fields[i + 1]) > now then
        found[#found + 1] = string.sub(fields[i], #FOLLOWER + 1)
      else
        redis.call('HDEL', flight, fields[i])
      end
    end
  end
  return found
end

local function leads(flight, fence) return redis.call('HGET', flight, 'fence') == fence end

-- Adds words to a flight's stream and wakes those who follow. Gives their number.
local function tell(flight, words, name, channel, fence, kept_ms, bodies)
  local found = followers(flight)
  if #found == 0 then return 0 end
  for _, body in ipairs(bodies) do redis.call('XADD', words, '*', 'fence', fence, 'body', body) end
  redis.call('PEXPIRE', words, kept_ms)
  for _, worker in ipairs(found) do redis.call('PUBLISH', channel .. worker, 'more ' .. name) end
  return #found
end
