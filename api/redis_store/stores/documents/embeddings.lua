-- Embeddings of current documents by a new embedder, and the removal of unused ones.
--   hash    rag:doc:<id>               a document: revision, embedded:<embedder> -> revision
--   hash    rag:doc:<id>:chunks        <embedder>:<revision> -> how many chunks
--   hash    rag:chunk:...              a chunk
--   string  rag:embedding:<embedder>   the worker that has the lease to embed with it
--   hash    rag:corpus:state           began_ms, done:<embedder> -> epoch
--   zset    rag:corpus:embedders       embedder -> its last use (ms)

-- name: rewrite
-- Writes chunks of a current revision with another embedder.
-- KEYS[1] hash the document                     KEYS[2] hash its chunks
-- KEYS[3] string rag:embedding:<embedder>       KEYS[4..] hashes, the chunks
-- ARGV: revision, worker, <embedder>, chunks in all, number of values per chunk, field, value ...
-- Returns 1, or 0 if the revision is not current, is embedded already, or another worker has the lease.
local revision, embedded = unpack(redis.call('HMGET', KEYS[1], 'revision', 'embedded:' .. ARGV[3]))
if revision ~= ARGV[1] or embedded == revision or redis.call('GET', KEYS[3]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[2], ARGV[3] .. ':' .. ARGV[1], ARGV[4])
local width, at = tonumber(ARGV[5]), 6
for i = 4, #KEYS do
  redis.call('DEL', KEYS[i]) -- a chunk without a vector must not keep an old one
  redis.call('HSET', KEYS[i], unpack(ARGV, at, at + width - 1))
  at = at + width
end
return 1

-- name: embedded
-- Notes that a current revision is embedded by another embedder.
-- KEYS[1] hash the document   KEYS[2] string rag:embedding:<embedder>   KEYS[3] hash rag:corpus:<owner>
-- ARGV: revision, embedder, worker, the stemmer of its chunks and its language ('': none)
-- Returns 1, or 0 if the revision is not current, or another worker has the lease.
if redis.call('HGET', KEYS[1], 'revision') ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], 'embedded:' .. ARGV[2], ARGV[1])
if ARGV[4] ~= '' then redis.call('HSET', KEYS[3], 'stemmer:' .. ARGV[4], 1) end
local read = redis.call('HGET', KEYS[1], 'read_revision')
if read and read ~= ARGV[1] then redis.call('HDEL', KEYS[1], 'warnings', 'language') end -- of an earlier revision
redis.call('HSET', KEYS[1], 'read_revision', ARGV[1])
if ARGV[5] ~= '' then redis.call('HSETNX', KEYS[1], 'language', ARGV[5]) end
return 1

-- name: complete
-- Notes that an embedder has embedded all documents of an epoch.
-- KEYS[1] hash rag:corpus:state
-- ARGV: embedder, epoch, began_ms (both as read before it began)
-- Returns 1, or 0 if the documents are not the same ones, such as after FLUSHALL.
local began, done = unpack(redis.call('HMGET', KEYS[1], 'began_ms', 'done:' .. ARGV[1]))
if (began or '') ~= ARGV[3] then return 0 end
if (tonumber(done) or 0) < tonumber(ARGV[2]) then redis.call('HSET', KEYS[1], 'done:' .. ARGV[1], ARGV[2]) end
return 1

-- name: used
-- Notes that a worker uses an embedder for documents now.
-- KEYS[1] zset rag:corpus:embedders
-- ARGV: embedder
redis.call('ZADD', KEYS[1], 'GT', int(now_ms()), ARGV[1])
return 0

-- name: unused
-- Finds embedders that no worker has used for a while. An embedder without an entry counts as used now.
-- KEYS[1] zset rag:corpus:embedders
-- ARGV: keep_ms, embedder that has an index ...
-- Returns the unused ones.
local now = now_ms()
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'NX', int(now), ARGV[i]) end
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', int(now - tonumber(ARGV[1])))

-- name: forget
-- Removes data of an unused embedder. If a worker uses it again meanwhile, what is left of its data is still complete.
-- KEYS[1] zset rag:corpus:embedders   KEYS[2] hash rag:corpus:state or the document: loses a field
-- KEYS[3] hash the document's chunks: loses a field   KEYS[4..] hashes, chunks to delete
-- ARGV: embedder, keep_ms, field of KEYS[2], field of KEYS[3] ('': none)
-- Returns 1, or 0 if it was used meanwhile.
local now = now_ms()
local used = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not used or tonumber(used) > now - tonumber(ARGV[2]) then return 0 end
redis.call('HDEL', KEYS[2], ARGV[3])
if #KEYS > 3 then redis.call('UNLINK', unpack(KEYS, 4)) end
if ARGV[4] ~= '' then redis.call('HDEL', KEYS[3], ARGV[4]) end
return 1
