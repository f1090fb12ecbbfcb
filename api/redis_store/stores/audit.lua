-- The audit log: admin actions as a chain of hashes.
--   stream  rag:audit   number, at_ms, action, by, role, request, worker, details (JSON), previous, hash

-- name: append
-- Adds an entry if no other was added meanwhile. The worker computes the hash, because Lua in Redis has only SHA-1.
-- KEYS[1] stream
-- ARGV: the hash that the entry follows, the hash of an empty chain, entries to keep, then its fields and values
-- Returns the ID of the entry, or '' if the last entry has another hash.
local last, hash = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1], ARGV[2]
if last then
  for i = 1, #last[2], 2 do
    if last[2][i] == 'hash' then hash = last[2][i + 1] end
  end
end
if hash ~= ARGV[1] then return '' end
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, 4))
