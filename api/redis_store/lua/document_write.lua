-- Writes chunks of a revision, if that is wanted still.
-- KEYS[1] hash  that says so by its revision: rag:doc:<id>:work, or rag:doc:<id>
-- KEYS[2] hash  rag:doc:<id>:chunks, <embedder>:<revision> -> how many   KEYS[3 ...] hash  rag:chunk:...
-- ARGV: revision, <embedder>, how many in all, lease_ms (0: none), number of values a chunk, field, value ...
-- Returns 1, or 0 where the revision is void by now.
if redis.call('HGET', KEYS[1], 'revision') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[2], ARGV[2] .. ':' .. ARGV[1], ARGV[3])
local lease, width, at = tonumber(ARGV[4]), tonumber(ARGV[5]), 6
for i = 3, #KEYS do
  redis.call('HSET', KEYS[i], unpack(ARGV, at, at + width - 1))
  at = at + width
end
if lease > 0 then
  redis.call('HSET', KEYS[1], 'held_until_ms', int(now_ms() + lease), 'total', ARGV[3])
  redis.call('HINCRBY', KEYS[1], 'done', #KEYS - 2)
end
return 1
