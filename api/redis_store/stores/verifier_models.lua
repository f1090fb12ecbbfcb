-- The verifiers of the fleet, and which one is in use.
--   hash    rag:verifier            active, previous: digests, empty for the model of SEMANTIC_CACHE_VERIFIER_PATH
--   string  rag:verifier:<model>    the files of a model, as a ZIP archive

-- name: activate
-- Puts an uploaded model in use.
-- KEYS[1] hash rag:verifier   KEYS[2] string the uploaded archive   KEYS[3] string the model's archive
-- ARGV: digest, lifetime_ms
-- Returns the digest of a model that is no longer needed, empty if there is none; or nothing if the upload expired.
local digest, lifetime = ARGV[1], tonumber(ARGV[2])
if redis.call('EXISTS', KEYS[2]) == 0 then return nil end
redis.call('RENAME', KEYS[2], KEYS[3])
redis.call('PEXPIRE', KEYS[3], lifetime)
local active, previous = unpack(redis.call('HMGET', KEYS[1], 'active', 'previous'))
active, previous = active or '', previous or ''
local unneeded = ''
if active ~= digest then
  if previous ~= digest then unneeded = previous end
  redis.call('HSET', KEYS[1], 'active', digest, 'previous', active, 'since_ms', int(now_ms()))
end
redis.call('PEXPIRE', KEYS[1], lifetime)
return unneeded

-- name: roll_back
-- Exchanges the active model and the one before it.
-- KEYS[1] hash rag:verifier
-- ARGV: lifetime_ms
-- Returns the digest of the model now in use, or nothing if no model was ever activated.
local active, previous = unpack(redis.call('HMGET', KEYS[1], 'active', 'previous'))
if not active then return nil end
redis.call('HSET', KEYS[1], 'active', previous, 'previous', active, 'since_ms', int(now_ms()))
redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[1]))
return previous
