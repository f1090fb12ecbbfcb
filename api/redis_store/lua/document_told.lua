-- Notes that the cache has been told of what was owed.
-- KEYS[1] hash  rag:doc:<id>:work   ARGV: revision, holder
-- Returns 1, or 0 where the work is void by now, or another's.
if not is_held(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'owes', '0')
return 1
