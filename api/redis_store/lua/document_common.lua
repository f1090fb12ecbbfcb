-- What the scripts over documents share.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function int(number) return string.format('%d', number) end

-- Counts a change of a tenant's documents.
local function count(corpus, tenant, documents, chunks)
  redis.call('HSET', corpus, 'tenant', tenant, 'changed_ms', int(now_ms()))
  redis.call('HINCRBY', corpus, 'epoch', 1)
  redis.call('HINCRBY', corpus, 'documents', int(documents))
  redis.call('HINCRBY', corpus, 'chunks', int(chunks))
end
