-- Stores an answer from a backup under the times that it had, if it is right still and newer than what is there.
-- KEYS[1] hash  rag:cache:<scope>:<digest>   KEYS[2] hash  rag:invalidated, which answers -> when (ms)
-- KEYS[3] zset  rag:evict:cache   KEYS[4] zset  rag:expire:cache   KEYS[5] hash  rag:uses:cache
-- ARGV: created_ms, gone_ms, when documents were looked at (ms), the mark of the tenant's documents ('': it depends on
-- none), max_size, tokens, uses, number of marks, mark ..., field, value ...
-- Returns what became of it; 'changed' where documents have changed since they were looked at.
local created, gone, looked, documents = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local max_size, tokens, uses, marks = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local entry, books, now = KEYS[1], {KEYS[3], KEYS[4], KEYS[5]}, now_ms()
if gone <= now then return 'expired' end
local there = tonumber(redis.call('HGET', entry, 'created_ms'))
if there and there >= created then return 'there already' end
for _, at in ipairs(redis.call('HMGET', KEYS[2], unpack(ARGV, 9, 8 + marks))) do
  if at and created <= tonumber(at) then return 'deleted since' end
end
if documents ~= '' and looked <= tonumber(redis.call('HGET', KEYS[2], documents) or -1) then return 'changed' end
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', int(now), 'LIMIT', 0, 100)) do forget(books, old) end
if not there and redis.call('ZCARD', KEYS[3]) >= max_size then return 'no room' end

uses = math.max(uses, tonumber(redis.call('HGET', KEYS[5], entry) or 0))
value(books, entry, uses, tokens)
if uses > 0 then redis.call('HSET', KEYS[5], entry, int(uses)) end
redis.call('ZADD', KEYS[4], int(gone), entry)
redis.call('DEL', entry)
redis.call('HSET', entry, unpack(ARGV, 9 + marks))
redis.call('PEXPIREAT', entry, int(gone))
keep(books, gone - now)
return 'restored'
