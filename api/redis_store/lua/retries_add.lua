-- Adds a worker's calls and retries to the fleet's, and gives the fleet's of the window.
-- KEYS[1] hash: `<bucket>:calls`, `<bucket>:retries`
-- ARGV: calls, retries, seconds of a bucket, buckets of the window, lifetime in ms
local now = tonumber(redis.call('TIME')[1])
local bucket = math.floor(now / tonumber(ARGV[3]))
local oldest = bucket - tonumber(ARGV[4]) + 1

redis.call('HINCRBY', KEYS[1], bucket .. ':calls', ARGV[1])
redis.call('HINCRBY', KEYS[1], bucket .. ':retries', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[5])

local sums = { calls = 0, retries = 0 }
local counts = redis.call('HGETALL', KEYS[1])
for index = 1, #counts, 2 do
    local at, name = string.match(counts[index], '^(%d+):(%a+)$')
    if at and tonumber(at) < oldest then
        redis.call('HDEL', KEYS[1], counts[index])
    elseif sums[name] then -- what else there is, a later release counts
        sums[name] = sums[name] + tonumber(counts[index + 1])
    end
end
return { sums.calls, sums.retries }
