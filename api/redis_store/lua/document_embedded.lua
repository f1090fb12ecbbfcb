-- Notes that a revision that serves is embedded by a further embedder.
-- KEYS[1] hash  rag:doc:<id>   KEYS[2] string  rag:embedding:<embedder>, the worker whose duty that is
-- ARGV: revision, embedder, worker
-- Returns 1, or 0 where another revision serves by now, or it is another worker's duty.
if redis.call('HGET', KEYS[1], 'revision') ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], 'embedded:' .. ARGV[2], ARGV[1])
return 1
