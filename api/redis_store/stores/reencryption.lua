-- Replaces texts that another key encrypted, or none, unless they have changed since they were read.
--   hash    rag:cache:..., rag:quarantine:..., rag:chunk:...  entries and passages
--   string  rag:condensed:...          a rewritten question
--   string  rag:doc:<id>:text          the text of a document; hash rag:doc:<id> has its revision
--   stream  rag:labels:pairs           pairs of questions

-- name: replace_fields
-- KEYS[1] hash
-- ARGV: a field and the value that was read, number of fields to set, field, value ..., fields to delete ...
-- Returns 1, or 0 if it has changed.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
local last = 3 + 2 * tonumber(ARGV[3])
redis.call('HSET', KEYS[1], unpack(ARGV, 4, last))
if #ARGV > last then redis.call('HDEL', KEYS[1], unpack(ARGV, last + 1)) end
return 1

-- name: replace_value
-- KEYS[1] string   ARGV: the value that was read, the new one
-- Returns 1, or 0 if it has changed.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1

-- name: replace_text
-- KEYS[1] string the text   KEYS[2] string the uploaded one   KEYS[3] hash the document
-- ARGV: its revision as read
-- Returns 1, or 0 if another revision is in service.
if redis.call('HGET', KEYS[3], 'revision') ~= ARGV[1] or redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
redis.call('RENAME', KEYS[2], KEYS[1])
redis.call('PERSIST', KEYS[1])
return 1

-- name: replace_pair
-- A stream's entries cannot change, so the new one is added last.
-- KEYS[1] stream   ARGV: the entry's ID, field, value ...
-- Returns 1, or 0 if it is gone.
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
return 1
