-- Notes what a document is to become, for whichever worker takes it on. The newest wins.
-- KEYS[1] hash    rag:doc:<id>        KEYS[2] hash  rag:doc:<id>:work          KEYS[3] string  rag:doc:<id>:draft
-- KEYS[4] zset    rag:corpus:work, id -> when it was asked for (ms)            KEYS[5] hash    rag:corpus:state
-- KEYS[6] zset    rag:corpus:<owner>:documents, id -> when it was made (ms)     KEYS[7] string  the content
-- ARGV: id, digest, most documents, number of facts, fact, value ..., further fields of the work, value ...
-- Returns {what became of it, revision, 1 where there was such a document}.
local id, digest, most, facts = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local phase, coming, revision, owes = unpack(redis.call('HMGET', KEYS[2], 'phase', 'digest', 'revision', 'owes'))
if phase == 'store' and coming == digest then return {'under_way', tonumber(revision), redis.call('EXISTS', KEYS[1])} end
local serving, at, failed = unpack(redis.call('HMGET', KEYS[1], 'digest', 'revision', 'error'))
if phase ~= 'store' and serving == digest and not failed then return {'unchanged', tonumber(at), 1} end
if not at and redis.call('ZCARD', KEYS[6]) >= most then return {'full', 0, 0} end

local now, first = int(now_ms()), 5 + 2 * facts
if redis.call('EXISTS', KEYS[7]) == 0 then return {'lost', 0, 0} end
redis.call('RENAME', KEYS[7], KEYS[3])
redis.call('PERSIST', KEYS[3])
redis.call('HSETNX', KEYS[5], 'began_ms', now)
local given = next_revision(KEYS[5])
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'id', id, 'revision', given, 'phase', 'store', 'digest', digest, 'asked_ms', now,
  'owes', (phase == 'tell' or owes == '1') and '1' or '0', unpack(ARGV, 5))
redis.call('ZADD', KEYS[4], now, id)
if not at then
  redis.call('HSET', KEYS[1], 'id', id, 'revision', 0, 'chunks', 0, 'characters', 0, 'created_ms', now,
    unpack(ARGV, 5, first - 1))
  redis.call('ZADD', KEYS[6], now, id)
end
redis.call('HSET', KEYS[1], 'status', 'processing', 'updated_ms', now)
redis.call('HDEL', KEYS[1], 'error')
return {'accepted', tonumber(given), at and 1 or 0}
