-- Writes chunks of a revision that is to serve, if it is wanted still.
-- KEYS[1] hash  rag:doc:<id>:work   KEYS[2] hash  rag:doc:<id>:chunks, <embedder>:<revision> -> how many
-- KEYS[3 ...] hash  rag:chunk:...
-- ARGV: revision, holder, lease_ms, <embedder>, how many in all, how many before, number of values a chunk, field,
-- value ...
-- Returns 1, or 0 where the work is void by now, or another's.
if not is_held(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
redis.call('HSET', KEYS[2], ARGV[4] .. ':' .. ARGV[1], ARGV[5])
local width, at = tonumber(ARGV[7]), 8
for i = 3, #KEYS do
  redis.call('DEL', KEYS[i]) -- one that is not embedded must not keep the vector of another cut
  redis.call('HSET', KEYS[i], unpack(ARGV, at, at + width - 1))
  at = at + width
end
-- Who gets on does not die of the document, nor is it put off: only attempts without a chunk count.
redis.call('HDEL', KEYS[1], 'delayed_ms', 'delayed_by', 'delays')
redis.call('HSET', KEYS[1], 'held_until_ms', int(now_ms() + tonumber(ARGV[3])), 'total', ARGV[5],
  'done', int(tonumber(ARGV[6]) + #KEYS - 2), 'attempts', '1')
return 1
