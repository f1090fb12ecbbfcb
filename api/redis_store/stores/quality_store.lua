-- The fleet's knowledge about its quality (one worker writes it, all workers follow it), and its verifiers.
--   hash    rag:quality           epoch, state (JSON)
--   string  rag:quality:keeper    the worker that has the lease to write
--   string  rag:quality:<scope>   the model of a scope (JSON)
--   hash    rag:verifier          active, previous: digests, empty for the model of SEMANTIC_CACHE_VERIFIER_PATH
--   string  rag:verifier:<model>  the files of a model, as a ZIP archive

-- name: read
-- Reads the state if it is not the one that the reader knows.
-- KEYS[1] hash the quality   ARGV: known epoch
-- Returns {epoch} or {epoch, state}; epoch is 0 if nothing is stored.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return {0} end
if epoch == ARGV[1] then return {tonumber(epoch)} end
return {tonumber(epoch), redis.call('HGET', KEYS[1], 'state')}

-- name: publish
-- Writes a new state and models of scopes, if the writer has the lease and knows the stored state.
-- KEYS[1] hash the quality   KEYS[2] string the lease   KEYS[3...] strings the models
-- ARGV: worker, known epoch, lifetime_ms, state, channel that tells the workers, model ...
-- Returns the new epoch; 0 if another worker has the lease or has written.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
local epoch = tonumber(redis.call('HGET', KEYS[1], 'epoch') or 0)
if epoch ~= tonumber(ARGV[2]) then return 0 end
-- The clock keeps epochs apart that were written before and after a loss of all keys.
epoch = math.max(epoch + 1, now_ms())
redis.call('HSET', KEYS[1], 'epoch', int(epoch), 'state', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
for i = 3, #KEYS do redis.call('SET', KEYS[i], ARGV[i + 3], 'PX', ARGV[3]) end
redis.call('PUBLISH', ARGV[5], int(epoch))
return int(epoch)

-- name: rewrite
-- Replaces the state that the writer has read. The keeper then begins again, from this state and the stored labels.
-- KEYS[1] hash the quality
-- ARGV: known epoch, lifetime_ms, state ('': there is none), channel that tells the workers
-- Returns 1, or 0 if another worker has written.
local epoch = tonumber(redis.call('HGET', KEYS[1], 'epoch') or 0)
if epoch ~= tonumber(ARGV[1]) then return 0 end
epoch = math.max(epoch + 1, now_ms())
redis.call('HSET', KEYS[1], 'epoch', int(epoch))
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'state', ARGV[3]) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[4], int(epoch))
return 1

-- name: activate_verifier
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

-- name: roll_back_verifier
-- Exchanges the active model and the one before it.
-- KEYS[1] hash rag:verifier
-- ARGV: lifetime_ms
-- Returns the digest of the model now in use, or nothing if no model was ever activated.
local active, previous = unpack(redis.call('HMGET', KEYS[1], 'active', 'previous'))
if not active then return nil end
redis.call('HSET', KEYS[1], 'active', previous, 'previous', active, 'since_ms', int(now_ms()))
redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[1]))
return previous
