-- Gives up a duty, if it is still this worker's.
-- KEYS[1] string: the worker that has it
-- ARGV: worker
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('DEL', KEYS[1])
end
return 0
