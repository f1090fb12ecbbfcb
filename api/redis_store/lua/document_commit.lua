-- Puts a revision whose chunks are written into service, in the place of the one before, at once.
-- KEYS[1] hash  rag:doc:<id>          KEYS[2] string  rag:doc:<id>:text      KEYS[3] string  rag:doc:<id>:draft
-- KEYS[4] hash  rag:doc:<id>:work     KEYS[5] hash    rag:corpus:<owner>     KEYS[6] hash    rag:corpus:state
-- ARGV: id, revision, holder, embedder, chunks, characters, how many of the chunks are not embedded, which (JSON)
-- Returns 1, 2 where it took the place of one before, or 0 where the work is void by now, or another's.
local revision, embedder, chunks = ARGV[2], ARGV[4], tonumber(ARGV[5])
local phase, tenant = unpack(redis.call('HMGET', KEYS[4], 'phase', 'tenant'))
if not is_held(KEYS[4], revision, ARGV[3]) or phase ~= 'store' then return 0 end

local before, before_chunks = unpack(redis.call('HMGET', KEYS[1], 'revision', 'chunks'))
local replaced = tonumber(before) > 0
redis.call('RENAME', KEYS[3], KEYS[2])
for _, name in ipairs({'tenant', 'title', 'tags', 'source', 'version', 'digest'}) do
  local value = redis.call('HGET', KEYS[4], name)
  if value then redis.call('HSET', KEYS[1], name, value) else redis.call('HDEL', KEYS[1], name) end
end
redis.call('HSET', KEYS[1], 'revision', revision, 'chunks', chunks, 'characters', ARGV[6], 'status', 'ready',
  'updated_ms', int(now_ms()), 'embedded:' .. embedder, revision)
redis.call('HDEL', KEYS[1], 'not_embedded', 'failed_chunks')
if tonumber(ARGV[7]) > 0 then redis.call('HSET', KEYS[1], 'not_embedded', ARGV[7], 'failed_chunks', ARGV[8]) end
count(KEYS[5], tenant, replaced and 0 or 1, chunks - tonumber(before_chunks))

local done = redis.call('HGET', KEYS[6], 'done:' .. embedder)
local epoch = redis.call('HINCRBY', KEYS[6], 'epoch', 1)
-- One that has not embedded all is known from here on, as one that has some.
redis.call('HSET', KEYS[6], 'done:' .. embedder, (tonumber(done) or 0) == epoch - 1 and epoch or (done or 0))

redis.call('HSET', KEYS[4], 'phase', 'tell', 'replaced', replaced and 1 or 0)
return replaced and 2 or 1
