-- Deletes entries, and ends what generations under way would put in their place.
-- KEYS[1] zset  rag:evict:cache   then for each entry
-- KEYS[n] hash  rag:cache:<scope>:<digest>   KEYS[n+1] hash  rag:flight:{<scope>:<digest>}
-- Returns how many entries there were.
local deleted = 0
for i = 2, #KEYS, 2 do
  deleted = deleted + redis.call('UNLINK', KEYS[i])
  redis.call('UNLINK', KEYS[i + 1])
  redis.call('ZREM', KEYS[1], KEYS[i])
end
return deleted
