-- Counts uses of entries, and values these anew. One that is gone is forgotten; one that the books lack, as Redis had
-- evicted them, is in them again.
-- KEYS[1] zset  rag:evict:cache   KEYS[2] zset  rag:expire:cache   KEYS[3] hash  rag:uses:cache
-- KEYS[4 ...] hash  rag:cache:<scope>:<digest>   ARGV: lifetime_ms of the first three at least, the uses of each
-- The uses are not in the entry's own hash: its vector would be put into the index anew with each of them.
local books = {KEYS[1], KEYS[2], KEYS[3]}
for i = 4, #KEYS do
  local entry = KEYS[i]
  local tokens = redis.call('HGET', entry, 'completion_tokens')
  if tokens then
    redis.call('ZADD', KEYS[2], 'NX', int(now_ms() + redis.call('PTTL', entry)), entry)
    value(books, entry, redis.call('HINCRBY', KEYS[3], entry, ARGV[i - 2]), tonumber(tokens))
  else
    forget(books, entry)
  end
end
keep(books, tonumber(ARGV[1]))
return 0
