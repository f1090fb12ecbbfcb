-- Notes that a revision that serves is embedded by a further embedder.
-- KEYS[1] hash  rag:doc:<id>   ARGV: revision, embedder
-- Returns 1, or 0 where another revision serves by now.
if redis.call('HGET', KEYS[1], 'revision') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'embedded:' .. ARGV[2], ARGV[1])
return 1
