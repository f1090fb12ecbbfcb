-- Ends a flight whose leader has no callers left, unless others follow.
-- KEYS[1] hash rag:flight:{<scope>:<digest>}   KEYS[2] stream rag:flight:{<scope>:<digest>}:words
-- ARGV: fence
-- Gives how many follow.
if not leads(KEYS[1], ARGV[1]) then return 0 end
local found = followers(KEYS[1])
if #found == 0 then redis.call('UNLINK', KEYS[1], KEYS[2]) end
return #found
