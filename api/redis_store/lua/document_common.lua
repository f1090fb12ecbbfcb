-- What the scripts over documents share.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function int(number) return string.format('%d', number) end

-- Whether a change is wanted still, and nobody has taken it on since whoever asks did.
local function is_held(work, revision, holder)
  local wanted, by = unpack(redis.call('HMGET', work, 'revision', 'holder'))
  return wanted == revision and by == holder
end

-- The next revision. It is never less than the time: none comes twice after FLUSHALL, or where Redis has lost its last
-- writes, and what was written late for one from before is not taken for this one's.
local function next_revision(state)
  local last = tonumber(redis.call('HGET', state, 'revision') or 0)
  local given = int(math.max(last + 1, now_ms()))
  redis.call('HSET', state, 'revision', given)
  return given
end

-- Counts a change of a tenant's documents.
local function count(corpus, tenant, documents, chunks)
  redis.call('HSET', corpus, 'tenant', tenant, 'changed_ms', int(now_ms()))
  redis.call('HINCRBY', corpus, 'epoch', 1)
  redis.call('HINCRBY', corpus, 'documents', int(documents))
  redis.call('HINCRBY', corpus, 'chunks', int(chunks))
end
