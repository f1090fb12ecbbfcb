-- Stores an answer under an absolute lifetime and holds the bound on the number of entries.
-- KEYS[1] hash  rag:cache:<scope>:<digest>   KEYS[2] hash  rag:invalidated, which answers -> when (ms)
-- KEYS[3..7] the books, see cache_common   KEYS[8] hash  of the flight whose fence is given
-- ARGV: ttl_ms, stale_ms, max_size, the tenant's share of it, tenant, fence ('': none), asked_ms, tokens, the mark of the
-- tenant's documents ('': none were looked for), when they were looked for (ms), lifetime_ms of the marks, number of
-- marks, mark ..., field, value ...
-- Returns {created_ms, expires_ms, evicted}; nothing where the fence is another's, or where one of the marks was set
-- since the answer was asked for; {'changed', now_ms} where it is none but that of the documents, since they were looked
-- for, or where the marks do not go back as far: FLUSHALL takes them along with the documents, and an eviction alone.
local AT_ONCE, SAMPLE, BEGAN = 1000, 10, 'began'
local ttl, stale, max_size = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local share, tenant = tonumber(ARGV[4]), ARGV[5]
local fence, asked, tokens = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local documents, looked, marks_ms, marks = ARGV[9], tonumber(ARGV[10]), ARGV[11], tonumber(ARGV[12])
if fence ~= '' and redis.call('HGET', KEYS[8], 'fence') ~= fence then return {} end
for _, at in ipairs(redis.call('HMGET', KEYS[2], unpack(ARGV, 13, 12 + marks))) do
  if at and asked > 0 and asked <= tonumber(at) then return {} end
end
local entry, books, now = KEYS[1], books_from(3), now_ms()
if documents ~= '' then
  local changed, began = unpack(redis.call('HMGET', KEYS[2], documents, BEGAN))
  if not began then
    redis.call('HSET', KEYS[2], BEGAN, int(now))
    redis.call('PEXPIRE', KEYS[2], marks_ms)
  end
  if not began or looked < tonumber(began) or looked <= tonumber(changed or -1) then return {'changed', int(now)} end
end

-- First a write that Redis refuses while its memory is full: after any other it would let all of them pass.
value(books, entry, tenant, tonumber(redis.call('HGET', books.uses, entry) or 0), tokens)
redis.call('ZADD', books.expire, int(now + ttl + stale), entry)
redis.call('DEL', entry)
redis.call('HSET', entry, 'created_ms', int(now), 'expires_ms', int(now + ttl), unpack(ARGV, 13 + marks))
redis.call('PEXPIRE', entry, ttl + stale)
if documents ~= '' then redis.call('PEXPIRE', KEYS[2], marks_ms) end

-- Those that have expired make room before any that lives.
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', books.expire, '-inf', int(now), 'LIMIT', 0, AT_ONCE)) do
  forget(books, gone)
end
-- So do those that Redis itself has evicted: nobody is told of them, a sample finds them in time.
if redis.call('ZCARD', books.evict) > max_size then
  for _, any in ipairs(redis.call('ZRANDMEMBER', books.evict, SAMPLE)) do
    if redis.call('EXISTS', any) == 0 then forget(books, any) end
  end
end
local evicted = 0
for _ = 1, math.min(redis.call('ZCARD', books.evict) - max_size, AT_ONCE) do
  evicted = evicted + evict_one(books, entry, share)
end
keep(books, tenant, ttl + stale)
return {int(now), int(now + ttl), evicted}
