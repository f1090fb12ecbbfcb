-- Adds a worker's batch to the counters, once however often it is sent: a worker that had no reply sends it again.
-- KEYS[1] hash rag:stats:cache   KEYS[2] string rag:stats:batch:{rag:stats:cache}:<worker>
-- ARGV: the batch's number, how long it is remembered (ms), lifetime_ms of the counters, then name, count ...
-- Gives 1; 0 where it was added before.
if redis.call('GET', KEYS[2]) == ARGV[1] then return 0 end
for i = 4, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return 1
