-- What the fleet knows about its quality. One worker writes it, all workers follow it.
--   hash    rag:quality          epoch, state (JSON)
--   string  rag:quality:keeper   the worker that has the lease to write
--   string  rag:quality:<scope>  the model of a scope (JSON)

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
-- ARGV: worker, known epoch, lifetime_ms, state, model ...
-- Returns the new epoch; 0 if another worker has the lease or has written.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
local epoch = tonumber(redis.call('HGET', KEYS[1], 'epoch') or 0)
if epoch ~= tonumber(ARGV[2]) then return 0 end
-- The clock keeps epochs apart that were written before and after a loss of all keys.
epoch = math.max(epoch + 1, now_ms())
redis.call('HSET', KEYS[1], 'epoch', int(epoch), 'state', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
for i = 3, #KEYS do redis.call('SET', KEYS[i], ARGV[i + 2], 'PX', ARGV[3]) end
return int(epoch)
