-- Gives a restored document the times that it had.
-- KEYS[1] hash  rag:doc:<id>   KEYS[2] zset  rag:corpus:<owner>:documents, id -> when it was made (ms)
-- ARGV: id, revision, created_ms, updated_ms
-- Returns 1, or 0 where another revision serves by now.
if redis.call('HGET', KEYS[1], 'revision') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'created_ms', ARGV[3], 'updated_ms', ARGV[4])
redis.call('ZADD', KEYS[2], 'XX', ARGV[3], ARGV[1])
return 1
