-- Writes chunks of a revision that serves, by a further embedder.
-- KEYS[1] hash  rag:doc:<id>   KEYS[2] hash  rag:doc:<id>:chunks, <embedder>:<revision> -> how many
-- KEYS[3] string  rag:embedding:<embedder>, the worker whose duty that is   KEYS[4 ...] hash  rag:chunk:...
-- ARGV: revision, worker, <embedder>, how many in all, number of values a chunk, field, value ...
-- Returns 1, or 0 where another revision serves by now, it has been embedded, or it is another worker's duty.
local revision, embedded = unpack(redis.call('HMGET', KEYS[1], 'revision', 'embedded:' .. ARGV[3]))
if revision ~= ARGV[1] or embedded == revision or redis.call('GET', KEYS[3]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[2], ARGV[3] .. ':' .. ARGV[1], ARGV[4])
local width, at = tonumber(ARGV[5]), 6
for i = 4, #KEYS do
  redis.call('DEL', KEYS[i]) -- one that is not embedded must not keep the vector of another cut
  redis.call('HSET', KEYS[i], unpack(ARGV, at, at + width - 1))
  at = at + width
end
return 1
