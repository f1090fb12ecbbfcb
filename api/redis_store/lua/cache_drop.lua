-- Deletes entries, and ends what generations under way would put in their place.
-- KEYS[1..5] the books, see cache_common   then for each entry
-- KEYS[n] hash  rag:cache:<scope>:<digest>   KEYS[n+1] hash  rag:flight:{<scope>:<digest>}
-- Returns how many entries there were.
local deleted, books = 0, books_from(1)
for i = 6, #KEYS, 2 do
  deleted = deleted + redis.call('UNLINK', KEYS[i])
  redis.call('UNLINK', KEYS[i + 1])
  forget(books, KEYS[i])
end
return deleted
