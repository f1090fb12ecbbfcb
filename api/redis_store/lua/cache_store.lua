-- Stores an answer under an absolute lifetime and holds the bound on the number of entries.
-- KEYS[1] hash  rag:cache:<scope>:<digest>   KEYS[2] hash  rag:invalidated, which answers -> when (ms)
-- KEYS[3] zset  rag:evict:cache, key of an entry -> what it is worth   KEYS[4] zset  rag:expire:cache -> its end (ms)
-- KEYS[5] hash  rag:uses:cache -> how often it was used   KEYS[6] hash  of the flight whose fence is given
-- ARGV: ttl_ms, stale_ms, max_size, fence ('': none), asked_ms, tokens, the mark of the tenant's documents ('': none
-- were looked for), when they were looked for (ms), lifetime_ms of the marks, number of marks, mark ..., field, value ...
-- Returns {created_ms, expires_ms, evicted}; nothing where the fence is another's, or where one of the marks was set
-- since the answer was asked for; {'changed', now_ms} where it is none but that of the documents, since they were looked
-- for, or where the marks do not go back as far: FLUSHALL takes them along with the documents, and an eviction alone.
local AT_ONCE, SAMPLE, BEGAN = 1000, 10, 'began'
local ttl, stale, max_size = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local fence, asked, tokens = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local documents, looked, marks_ms, marks = ARGV[7], tonumber(ARGV[8]), ARGV[9], tonumber(ARGV[10])
if fence ~= '' and redis.call('HGET', KEYS[6], 'fence') ~= fence then return {} end
for _, at in ipairs(redis.call('HMGET', KEYS[2], unpack(ARGV, 11, 10 + marks))) do
  if at and asked > 0 and asked <= tonumber(at) then return {} end
end
local entry, books, now = KEYS[1], {KEYS[3], KEYS[4], KEYS[5]}, now_ms()
if documents ~= '' then
  local changed, began = unpack(redis.call('HMGET', KEYS[2], documents, BEGAN))
  if not began then
    redis.call('HSET', KEYS[2], BEGAN, int(now))
    redis.call('PEXPIRE', KEYS[2], marks_ms)
  end
  if not began or looked < tonumber(began) or looked <= tonumber(changed or -1) then return {'changed', int(now)} end
end

-- First a write that Redis refuses while its memory is full: after any other it would let all of them pass.
value(books, entry, tonumber(redis.call('HGET', KEYS[5], entry) or 0), tokens)
redis.call('ZADD', KEYS[4], int(now + ttl + stale), entry)
redis.call('DEL', entry)
redis.call('HSET', entry, 'created_ms', int(now), 'expires_ms', int(now + ttl), unpack(ARGV, 11 + marks))
redis.call('PEXPIRE', entry, ttl + stale)
if documents ~= '' then redis.call('PEXPIRE', KEYS[2], marks_ms) end

-- Those that have expired make room before any that lives.
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', int(now), 'LIMIT', 0, AT_ONCE)) do
  forget(books, gone)
end
-- So do those that Redis itself has evicted: nobody is told of them, a sample finds them in time.
if redis.call('ZCARD', KEYS[3]) > max_size then
  for _, any in ipairs(redis.call('ZRANDMEMBER', KEYS[3], SAMPLE)) do
    if redis.call('EXISTS', any) == 0 then forget(books, any) end
  end
end
local evicted = 0
for _ = 1, math.min(redis.call('ZCARD', KEYS[3]) - max_size, AT_ONCE) do
  local least = redis.call('ZRANGE', KEYS[3], 0, 1, 'WITHSCORES')
  local at = least[1] == entry and 3 or 1
  if redis.call('UNLINK', least[at]) == 1 then
    evicted = evicted + 1
    redis.call('HSET', KEYS[5], LAST_EVICTED, int(tonumber(least[at + 1])))
  end
  forget(books, least[at])
end
keep(books, ttl + stale)
return {int(now), int(now + ttl), evicted}
