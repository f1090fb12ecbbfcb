-- Counts uses of entries, and values these anew. One that is gone is forgotten; one that the books lack, as Redis had
-- evicted them, is in them again.
-- KEYS[1..5] the books, see cache_common   KEYS[6 ...] hash  rag:cache:<scope>:<digest>
-- ARGV: lifetime_ms of the books at least, the uses of each
-- The uses are not in the entry's own hash: its vector would be put into the index anew with each of them.
local books = books_from(1)
for i = 6, #KEYS do
  local entry = KEYS[i]
  local tokens, tenant = unpack(redis.call('HMGET', entry, 'completion_tokens', 'tenant'))
  if tokens and tenant then
    redis.call('ZADD', books.expire, 'NX', int(now_ms() + redis.call('PTTL', entry)), entry)
    value(books, entry, tenant, redis.call('HINCRBY', books.uses, entry, ARGV[i - 4]), tonumber(tokens))
    keep(books, tenant, tonumber(ARGV[1]))
  else
    forget(books, entry)
  end
end
return 0
