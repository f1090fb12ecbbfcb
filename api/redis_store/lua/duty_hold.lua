-- Takes a duty that nobody has, or renews it for the worker that has it.
-- KEYS[1] string: the worker that has it
-- ARGV: worker, lifetime in ms
-- Gives 1 when it is this worker's, else 0.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
    return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
