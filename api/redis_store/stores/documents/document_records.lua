-- Documents and the work on them. A change is first noted as work, then any worker takes it.
--   hash    rag:doc:<id>                    a document: status, revision, chunks, title ...
--   string  rag:doc:<id>:text               its text
--   string  rag:doc:<id>:draft              the content of the revision to come
--   hash    rag:doc:<id>:work               work: phase, revision, holder, held_until_ms, attempts ...
--   hash    rag:doc:<id>:chunks             <embedder>:<revision> -> how many chunks
--   hash    rag:chunk:...                   a chunk
--   zset    rag:corpus:work                 document id -> when its change was asked for (ms)
--   hash    rag:corpus:<owner>              a tenant's counts: epoch, changed_ms, documents, chunks, stemmer:<name>
--   zset    rag:corpus:<owner>:documents    document id -> when it was created (ms)
--   hash    rag:corpus:state                revision, epoch, began_ms, done:<embedder> -> epoch
--   zset    rag:deleted                     what was deleted -> when (ms)
-- Work is void once a newer change replaces it or another worker takes it.

-- name: note_deletions
-- Notes deletions. If there are more than `most`, a single entry `all` replaces the oldest.
-- KEYS[1] zset rag:deleted
-- ARGV: lifetime_ms, most, then for each: tag, when (ms; 0: now)
local now = now_ms()
for i = 3, #ARGV, 2 do
  local at = tonumber(ARGV[i + 1])
  redis.call('ZADD', KEYS[1], 'GT', int(at > 0 and math.min(at, now) or now), ARGV[i])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', int(now - tonumber(ARGV[1])))
local over = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[2])
if over > 0 then
  local popped = redis.call('ZPOPMIN', KEYS[1], over)
  redis.call('ZADD', KEYS[1], 'GT', int(tonumber(popped[#popped])), 'all')
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 0

-- name: restore_times
-- Gives a restored document its original times.
-- KEYS[1] hash the document   KEYS[2] zset the owner's documents
-- ARGV: id, revision, created_ms, updated_ms
-- Returns 1, or 0 if the document has another revision now.
if redis.call('HGET', KEYS[1], 'revision') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'created_ms', ARGV[3], 'updated_ms', ARGV[4])
redis.call('ZADD', KEYS[2], 'XX', ARGV[3], ARGV[1])
return 1

-- name: forget_corpus
-- Forgets the counts of a tenant that has no documents.
-- KEYS[1] hash rag:corpus:<owner>   KEYS[2] zset the owner's documents
-- Returns 1, or 0 if it has some again.
if redis.call('ZCARD', KEYS[2]) > 0 then return 0 end
redis.call('UNLINK', KEYS[1], KEYS[2])
return 1

-- shared

-- Returns whether the work is still for this revision and this holder still has it.
local function has_lease(work, revision, holder)
  local wanted, by = unpack(redis.call('HMGET', work, 'revision', 'holder'))
  return wanted == revision and by == holder
end

-- Returns the next revision, at least the current time. So no revision comes twice after FLUSHALL or a loss of the
-- last writes, and a late write for an older revision cannot pass for one of this revision.
local function next_revision(state)
  local last = tonumber(redis.call('HGET', state, 'revision') or 0)
  local given = int(math.max(last + 1, now_ms()))
  redis.call('HSET', state, 'revision', given)
  return given
end

-- Counts a change to a tenant's documents.
local function count_change(corpus, tenant, documents, chunks)
  redis.call('HSET', corpus, 'tenant', tenant, 'changed_ms', int(now_ms()))
  redis.call('HINCRBY', corpus, 'epoch', 1)
  redis.call('HINCRBY', corpus, 'documents', int(documents))
  redis.call('HINCRBY', corpus, 'chunks', int(chunks))
end

-- name: propose
-- Notes a new revision as work for any worker. The newest change wins.
-- KEYS[1] hash the document     KEYS[2] hash its work                KEYS[3] string its draft
-- KEYS[4] zset rag:corpus:work  KEYS[5] hash rag:corpus:state
-- KEYS[6] zset the owner's documents                                 KEYS[7] string the uploaded content
-- ARGV: id, digest, most documents, 1 to refuse a change, number of facts, fact, value ..., fields of the work ...
-- Returns {outcome, revision, 1 if the document existed}
local id, digest, most, facts = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5])
local phase, coming, revision, pending = unpack(redis.call('HMGET', KEYS[2], 'phase', 'digest', 'revision', 'owes'))
if phase == 'store' and coming == digest then
  return {'under_way', tonumber(revision), redis.call('EXISTS', KEYS[1])}
end
local serving, current, failed = unpack(redis.call('HMGET', KEYS[1], 'digest', 'revision', 'error'))
if phase ~= 'store' and serving == digest and not failed then return {'unchanged', tonumber(current), 1} end
if current and ARGV[4] == '1' then return {'exists', tonumber(current), 1} end
if not current and redis.call('ZCARD', KEYS[6]) >= most then return {'full', 0, 0} end

local now, first = int(now_ms()), 6 + 2 * facts
if redis.call('EXISTS', KEYS[7]) == 0 then return {'lost', 0, 0} end
redis.call('RENAME', KEYS[7], KEYS[3])
redis.call('PERSIST', KEYS[3])
redis.call('HSETNX', KEYS[5], 'began_ms', now)
local new = next_revision(KEYS[5])
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'id', id, 'revision', new, 'phase', 'store', 'digest', digest, 'asked_ms', now,
  'owes', (phase == 'tell' or pending == '1') and '1' or '0', unpack(ARGV, 6))
redis.call('ZADD', KEYS[4], now, id)
if not current then
  redis.call('HSET', KEYS[1], 'id', id, 'revision', 0, 'chunks', 0, 'characters', 0, 'created_ms', now,
    unpack(ARGV, 6, first - 1))
  redis.call('ZADD', KEYS[6], now, id)
end
redis.call('HSET', KEYS[1], 'status', 'processing', 'updated_ms', now)
redis.call('HDEL', KEYS[1], 'error')
return {'accepted', tonumber(new), current and 1 or 0}

-- name: delete
-- Deletes a document. The rest is work for any worker.
-- KEYS[1] hash the document     KEYS[2] string its text          KEYS[3] string its draft
-- KEYS[4] hash its work         KEYS[5] hash rag:corpus:<owner>  KEYS[6] hash rag:corpus:state
-- KEYS[7] zset rag:corpus:work  KEYS[8] zset the owner's documents
-- ARGV: id, tenant
-- Returns 1, or 0 if the tenant has no such document.
local id, tenant = ARGV[1], ARGV[2]
local owner, before, chunks = unpack(redis.call('HMGET', KEYS[1], 'tenant', 'revision', 'chunks'))
if owner ~= tenant then return 0 end

local revision = next_revision(KEYS[6])
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
redis.call('ZREM', KEYS[8], id)
if tonumber(before) > 0 then
  count_change(KEYS[5], tenant, -1, -tonumber(chunks))
  local epoch = redis.call('HINCRBY', KEYS[6], 'epoch', 1)
  local state = redis.call('HGETALL', KEYS[6])
  for i = 1, #state, 2 do -- an embedder that had embedded all still has
    if string.sub(state[i], 1, 5) == 'done:' and tonumber(state[i + 1]) == epoch - 1 then
      redis.call('HSET', KEYS[6], state[i], epoch)
    end
  end
end
redis.call('HSET', KEYS[4], 'id', id, 'revision', revision, 'phase', 'tell', 'tenant', tenant, 'gone', 1,
  'asked_ms', int(now_ms()))
redis.call('ZADD', KEYS[7], '-' .. int(now_ms()), id) -- before all work that embeds
return 1

-- name: take
-- Takes free work on a document.
-- KEYS[1] hash its work   KEYS[2] zset rag:corpus:work
-- ARGV: id, worker, holder (unique for each attempt), lease_ms, media types that this worker reads ...
-- Returns the fields of the work and their values. Returns {} if there is no work, another worker has it, or only a
-- worker of a later release can do it.
local until_ms, revision, phase, media_type =
  unpack(redis.call('HMGET', KEYS[1], 'held_until_ms', 'revision', 'phase', 'media_type'))
if not revision then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {}
end
if phase ~= 'store' and phase ~= 'tell' then return {} end
local reads = not media_type
for i = 5, #ARGV do reads = reads or ARGV[i] == media_type end
if not reads then return {} end
local now = now_ms()
if (tonumber(until_ms) or 0) > now then return {} end
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('HSET', KEYS[1], 'by', ARGV[2], 'holder', ARGV[3], 'held_until_ms', int(now + tonumber(ARGV[4])))
return redis.call('HGETALL', KEYS[1])

-- name: renew
-- Renews the lease on work, or releases it. A clean release does not count as an attempt.
-- KEYS[1] hash its work
-- ARGV: revision, holder, lease_ms (0: release it)
-- Returns 1, or 0 if the work is void.
if not has_lease(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
local lease = tonumber(ARGV[3])
redis.call('HSET', KEYS[1], 'held_until_ms', int(now_ms() + lease))
if lease == 0 then
  redis.call('HDEL', KEYS[1], 'holder')
  redis.call('HINCRBY', KEYS[1], 'attempts', -1)
end
return 1

-- name: delay
-- Delays work that cannot proceed, unless it has been delayed for too long already.
-- KEYS[1] hash its work
-- ARGV: revision, holder, delay_ms, longest delay in all (ms), reason
-- Returns 1; 2 if it was delayed for long enough, and the worker keeps it; 0 if the work is void.
if not has_lease(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
local now = now_ms()
local since = tonumber(redis.call('HGET', KEYS[1], 'delayed_ms') or now)
if now - since >= tonumber(ARGV[4]) then return 2 end
redis.call('HSET', KEYS[1], 'delayed_ms', int(since), 'delayed_by', ARGV[5],
  'held_until_ms', int(now + tonumber(ARGV[3])))
redis.call('HINCRBY', KEYS[1], 'delays', 1)
redis.call('HINCRBY', KEYS[1], 'attempts', -1) -- no worker crashed
redis.call('HDEL', KEYS[1], 'holder')
return 1

-- name: notified
-- Notes that the cache was invalidated for the pending change.
-- KEYS[1] hash its work
-- ARGV: revision, holder
-- Returns 1, or 0 if the work is void.
if not has_lease(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'owes', '0')
return 1

-- name: settle
-- Replaces an uploaded file by its extracted text, title, tags, warnings and language.
-- KEYS[1] hash its work   KEYS[2] string its draft   KEYS[3] string the text
-- ARGV: revision, holder, title, tags (JSON), warnings (JSON), language ('': unknown)
-- Returns 1, or 0 if the work is void or the text is gone.
if not has_lease(KEYS[1], ARGV[1], ARGV[2]) or redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
redis.call('RENAME', KEYS[3], KEYS[2])
redis.call('PERSIST', KEYS[2])
redis.call('HSET', KEYS[1], 'title', ARGV[3], 'tags', ARGV[4], 'warnings', ARGV[5])
redis.call('HDEL', KEYS[1], 'media_type', 'untitled', 'language')
if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'language', ARGV[6]) end
return 1

-- name: write
-- Writes chunks of a new revision.
-- KEYS[1] hash its work   KEYS[2] hash its chunks   KEYS[3..] hashes, the chunks
-- ARGV: revision, holder, lease_ms, <embedder>, chunks in all, chunks written before, number of values per chunk,
--       field, value ...
-- Returns 1, or 0 if the work is void.
if not has_lease(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
redis.call('HSET', KEYS[2], ARGV[4] .. ':' .. ARGV[1], ARGV[5])
local width, at = tonumber(ARGV[7]), 8
for i = 3, #KEYS do
  redis.call('DEL', KEYS[i]) -- a chunk without a vector must not keep an old one
  redis.call('HSET', KEYS[i], unpack(ARGV, at, at + width - 1))
  at = at + width
end
-- Progress resets delays and attempts: only attempts without a written chunk count.
redis.call('HDEL', KEYS[1], 'delayed_ms', 'delayed_by', 'delays')
redis.call('HSET', KEYS[1], 'held_until_ms', int(now_ms() + tonumber(ARGV[3])), 'total', ARGV[5],
  'done', int(tonumber(ARGV[6]) + #KEYS - 2), 'attempts', '1')
return 1

-- name: commit
-- Puts a completely written revision into service and replaces the current one in one step.
-- KEYS[1] hash the document   KEYS[2] string its text            KEYS[3] string its draft
-- KEYS[4] hash its work       KEYS[5] hash rag:corpus:<owner>    KEYS[6] hash rag:corpus:state
-- ARGV: id, revision, holder, embedder, chunks, characters, how many chunks are not embedded, which ones (JSON),
--       the stemmer of its chunks ('': none)
-- Returns 1, 2 if it replaced a revision, or 0 if the work is void.
local revision, embedder, chunks = ARGV[2], ARGV[4], tonumber(ARGV[5])
local phase, tenant = unpack(redis.call('HMGET', KEYS[4], 'phase', 'tenant'))
if not has_lease(KEYS[4], revision, ARGV[3]) or phase ~= 'store' then return 0 end

local before, before_chunks = unpack(redis.call('HMGET', KEYS[1], 'revision', 'chunks'))
local replaced = tonumber(before) > 0
redis.call('RENAME', KEYS[3], KEYS[2])
for _, name in ipairs({'tenant', 'title', 'tags', 'source', 'version', 'warnings', 'language', 'digest'}) do
  local value = redis.call('HGET', KEYS[4], name)
  if value then redis.call('HSET', KEYS[1], name, value) else redis.call('HDEL', KEYS[1], name) end
end
redis.call('HSET', KEYS[1], 'revision', revision, 'chunks', chunks, 'characters', ARGV[6], 'status', 'ready',
  'updated_ms', int(now_ms()), 'embedded:' .. embedder, revision, 'read_revision', revision)
redis.call('HDEL', KEYS[1], 'not_embedded', 'failed_chunks')
if tonumber(ARGV[7]) > 0 then redis.call('HSET', KEYS[1], 'not_embedded', ARGV[7], 'failed_chunks', ARGV[8]) end
count_change(KEYS[5], tenant, replaced and 0 or 1, chunks - tonumber(before_chunks))
if ARGV[9] ~= '' then redis.call('HSET', KEYS[5], 'stemmer:' .. ARGV[9], 1) end

local done = redis.call('HGET', KEYS[6], 'done:' .. embedder)
local epoch = redis.call('HINCRBY', KEYS[6], 'epoch', 1)
-- This also registers an embedder that has not embedded all documents yet.
redis.call('HSET', KEYS[6], 'done:' .. embedder, (tonumber(done) or 0) == epoch - 1 and epoch or (done or 0))

redis.call('HSET', KEYS[4], 'phase', 'tell', 'replaced', replaced and 1 or 0)
return replaced and 2 or 1

-- name: end
-- Ends work on a document.
-- KEYS[1] hash its work   KEYS[2] zset rag:corpus:work   KEYS[3] hash the document   KEYS[4] string its draft
-- ARGV: id, revision, holder, error ('': it succeeded)
-- Returns 1, or 0 if the work is void.
if not has_lease(KEYS[1], ARGV[2], ARGV[3]) then return 0 end
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[3], 'status', 'failed', 'error', ARGV[4], 'updated_ms', int(now_ms()))
  redis.call('UNLINK', KEYS[4])
end
redis.call('UNLINK', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
