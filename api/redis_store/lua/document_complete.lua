-- Notes that an embedder has embedded all documents of an epoch.
-- KEYS[1] hash  rag:corpus:state   ARGV: embedder, epoch, began_ms as they were before it began
-- Returns 1, or 0 where these are the documents of another Redis, such as after FLUSHALL.
local began, done = unpack(redis.call('HMGET', KEYS[1], 'began_ms', 'done:' .. ARGV[1]))
if (began or '') ~= ARGV[3] then return 0 end
if (tonumber(done) or 0) < tonumber(ARGV[2]) then redis.call('HSET', KEYS[1], 'done:' .. ARGV[1], ARGV[2]) end
return 1
