-- Stores an answer from a backup under the times that it had, if it is right still and newer than what is there.
-- KEYS[1] hash  rag:cache:<scope>:<digest>   KEYS[2] hash  rag:invalidated, which answers -> when (ms)
-- KEYS[3..7] the books, see cache_common
-- ARGV: created_ms, gone_ms, when documents were looked at (ms), the mark of the tenant's documents ('': it depends on
-- none), max_size, tenant, tokens, uses, number of marks, mark ..., field, value ...
-- Returns what became of it; 'changed' where documents have changed since they were looked at.
local created, gone, looked, documents = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local max_size, tenant, tokens = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local uses, marks = tonumber(ARGV[8]), tonumber(ARGV[9])
local entry, books, now = KEYS[1], books_from(3), now_ms()
if gone <= now then return 'expired' end
local there = tonumber(redis.call('HGET', entry, 'created_ms'))
if there and there >= created then return 'there already' end
for _, at in ipairs(redis.call('HMGET', KEYS[2], unpack(ARGV, 10, 9 + marks))) do
  if at and created <= tonumber(at) then return 'deleted since' end
end
if documents ~= '' and looked <= tonumber(redis.call('HGET', KEYS[2], documents) or -1) then return 'changed' end
for _, old in ipairs(redis.call('ZRANGEBYSCORE', books.expire, '-inf', int(now), 'LIMIT', 0, 100)) do forget(books, old) end
if not there and redis.call('ZCARD', books.evict) >= max_size then return 'no room' end

uses = math.max(uses, tonumber(redis.call('HGET', books.uses, entry) or 0))
value(books, entry, tenant, uses, tokens)
if uses > 0 then redis.call('HSET', books.uses, entry, int(uses)) end
redis.call('ZADD', books.expire, int(gone), entry)
redis.call('DEL', entry)
redis.call('HSET', entry, unpack(ARGV, 10 + marks))
redis.call('PEXPIREAT', entry, int(gone))
keep(books, tenant, gone - now)
return 'restored'
