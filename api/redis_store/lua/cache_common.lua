-- What an entry is worth: the higher, the later it is evicted.
--
-- The score is a time (ms): that of the last use, plus STEP for each doubling of its uses, and of the tokens that its
-- answer took above FEW_TOKENS, up to MOST_STEPS of either. So an answer of 2,000 tokens that was used 30 times
-- outlives one of 10 tokens that was used as lately by 50 minutes; and as that is bounded, what nobody asks for any
-- more goes, whatever it was.
-- Where entries come faster than that credit is used up, the last score that was evicted stands in for the clock: a
-- new entry is worth at least as much as the last that went, and finds its place among those of long standing.
local STEP, MOST_STEPS, FEW_TOKENS = 300000, 10, 64
local LAST_EVICTED = 'last_evicted'

local function int(number) return string.format('%d', number) end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function doublings(count) return math.min(math.log(1 + math.max(count, 0)) / math.log(2), MOST_STEPS) end

-- `books`: rag:evict:cache, rag:expire:cache and rag:uses:cache.
local function value(books, entry, uses, tokens)
  local last = tonumber(redis.call('HGET', books[3], LAST_EVICTED) or 0)
  local credit = STEP * (doublings(uses) + doublings((tokens or 0) / FEW_TOKENS))
  redis.call('ZADD', books[1], int(math.max(now_ms(), last) + credit), entry)
end

local function forget(books, entry)
  redis.call('ZREM', books[1], entry)
  redis.call('ZREM', books[2], entry)
  redis.call('HDEL', books[3], entry)
end

-- They live as long as the entry that goes last.
local function keep(books, lifetime)
  for _, book in ipairs(books) do
    if redis.call('PTTL', book) < lifetime then redis.call('PEXPIRE', book, lifetime) end
  end
end
