-- What an entry is worth: the higher, the later it is evicted.
--
-- The score is a time (ms): that of the last use, plus STEP for each doubling of its uses, and of the tokens that its
-- answer took above FEW_TOKENS, up to MOST_STEPS of either. So an answer of 2,000 tokens that was used 30 times
-- outlives one of 10 tokens that was used as lately by 50 minutes; and as that is bounded, what nobody asks for any
-- more goes, whatever it was.
-- Where entries come faster than that credit is used up, the last score that was evicted stands in for the clock: a
-- new entry is worth at least as much as the last that went, and finds its place among those of long standing.
local STEP, MOST_STEPS, FEW_TOKENS = 300000, 10, 64
-- A tenant that holds many entries loses its own first, so that score is kept for each tenant, too.
local LAST_EVICTED = 'last_evicted'

local function int(number) return string.format('%d', number) end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function doublings(count) return math.min(math.log(1 + math.max(count, 0)) / math.log(2), MOST_STEPS) end

-- Five keys describe all entries of a partition. A script gets them one after another, from KEYS[first] on:
--   zset  rag:evict:cache     entry -> what it is worth; rag:evict:cache:<tenant> has the entries of one tenant
--   zset  rag:expire:cache    entry -> when it is gone (ms)
--   hash  rag:uses:cache      entry -> how often it was used; last_evicted, last_evicted:<tenant>
--   hash  rag:tenant:cache    entry -> its tenant
--   zset  rag:tenants:cache   tenant -> how many entries it has
-- Redis may evict any of them, and older releases write only the first three. So counts are taken from the set of a
-- tenant's entries each time that it changes, and what is missing is added with the next use of an entry.
local function books_from(first)
  return {evict = KEYS[first], expire = KEYS[first + 1], uses = KEYS[first + 2], tenant = KEYS[first + 3],
    tenants = KEYS[first + 4]}
end

local function of_tenant(books, tenant) return books.evict .. ':' .. tenant end

local function extend(key, lifetime)
  if redis.call('PTTL', key) < lifetime then redis.call('PEXPIRE', key, lifetime) end
end

local function count_entries(books, tenant)
  local entries = of_tenant(books, tenant)
  local count = redis.call('ZCARD', entries)
  if count > 0 then
    redis.call('ZADD', books.tenants, count, tenant)
    extend(books.tenants, redis.call('PTTL', entries))
  else
    redis.call('ZREM', books.tenants, tenant)
    redis.call('HDEL', books.uses, LAST_EVICTED .. ':' .. tenant)
  end
end

local function value(books, entry, tenant, uses, tokens)
  local last = redis.call('HMGET', books.uses, LAST_EVICTED, LAST_EVICTED .. ':' .. tenant)
  local credit = STEP * (doublings(uses) + doublings((tokens or 0) / FEW_TOKENS))
  local worth = int(math.max(now_ms(), tonumber(last[1] or 0), tonumber(last[2] or 0)) + credit)
  redis.call('ZADD', books.evict, worth, entry)
  redis.call('ZADD', of_tenant(books, tenant), worth, entry)
  redis.call('HSET', books.tenant, entry, tenant)
  count_entries(books, tenant)
end

local function forget(books, entry)
  redis.call('ZREM', books.evict, entry)
  redis.call('ZREM', books.expire, entry)
  redis.call('HDEL', books.uses, entry)
  local tenant = redis.call('HGET', books.tenant, entry)
  if tenant then
    redis.call('HDEL', books.tenant, entry)
    redis.call('ZREM', of_tenant(books, tenant), entry)
    count_entries(books, tenant)
  end
end

-- They live as long as the entry that goes last.
local function keep(books, tenant, lifetime)
  for _, key in pairs(books) do extend(key, lifetime) end
  extend(of_tenant(books, tenant), lifetime)
end

-- Evicts the entry that is worth least: of the tenant that holds most, where that is more than `share` entries, else of
-- all. The entry just `stored` stays. Returns 1, or 0 where it was gone already.
local function evict_one(books, stored, share)
  local most = redis.call('ZRANGE', books.tenants, 0, 0, 'REV', 'WITHSCORES')
  local set, last = books.evict, LAST_EVICTED
  if most[1] and tonumber(most[2]) > share then
    set, last = of_tenant(books, most[1]), LAST_EVICTED .. ':' .. most[1]
  end
  local least = redis.call('ZRANGE', set, 0, 1, 'WITHSCORES')
  local at = least[1] == stored and 3 or 1
  if not least[at] then
    set, last = books.evict, LAST_EVICTED
    least = redis.call('ZRANGE', set, 0, 1, 'WITHSCORES')
    at = least[1] == stored and 3 or 1
  end
  local entry = least[at]
  local gone = redis.call('UNLINK', entry)
  if gone == 1 then redis.call('HSET', books.uses, last, int(tonumber(least[at + 1]))) end
  redis.call('ZREM', set, entry)
  forget(books, entry)
  if most[1] then count_entries(books, most[1]) end
  return gone
end
