-- Puts the text of a document, and its title, in the place of the file that they were read from.
-- KEYS[1] hash  rag:doc:<id>:work   KEYS[2] string  rag:doc:<id>:draft   KEYS[3] string  the text
-- ARGV: revision, holder, title
-- Returns 1, or 0 where the work is void by now, or another's, or the text is gone.
if not is_held(KEYS[1], ARGV[1], ARGV[2]) or redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
redis.call('RENAME', KEYS[3], KEYS[2])
redis.call('PERSIST', KEYS[2])
redis.call('HSET', KEYS[1], 'title', ARGV[3])
redis.call('HDEL', KEYS[1], 'media_type', 'untitled')
return 1
