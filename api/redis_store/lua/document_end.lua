-- Ends work on a document.
-- KEYS[1] hash  rag:doc:<id>:work   KEYS[2] zset  rag:corpus:work   KEYS[3] hash  rag:doc:<id>   KEYS[4] string  its draft
-- ARGV: id, revision, holder, error (empty: it is done)
-- Returns 1, or 0 where the work is void by now, or another's.
if not is_held(KEYS[1], ARGV[2], ARGV[3]) then return 0 end
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[3], 'status', 'failed', 'error', ARGV[4], 'updated_ms', int(now_ms()))
  redis.call('UNLINK', KEYS[4])
end
redis.call('UNLINK', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
