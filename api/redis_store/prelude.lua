-- Every script begins with this file: Redis's clock and whole numbers as text.

-- The time in microseconds since the epoch. All times of the fleet come from this clock.
local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- The time in milliseconds since the epoch.
local function now_ms()
  return math.floor(now_us() / 1000)
end

-- A whole number as text. Lua would write a large one as 1.7e+12.
local function int(number)
  return string.format('%d', number)
end
