-- Deletes entries, and ends what generations under way would put in their place.
-- KEYS[1] zset  rag:evict:cache   KEYS[2] zset  rag:expire:cache   KEYS[3] hash  rag:uses:cache   then for each entry
-- KEYS[n] hash  rag:cache:<scope>:<digest>   KEYS[n+1] hash  rag:flight:{<scope>:<digest>}
-- Returns how many entries there were.
local deleted, books = 0, {KEYS[1], KEYS[2], KEYS[3]}
for i = 4, #KEYS, 2 do
  deleted = deleted + redis.call('UNLINK', KEYS[i])
  redis.call('UNLINK', KEYS[i + 1])
  forget(books, KEYS[i])
end
return deleted
