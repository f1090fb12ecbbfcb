-- Tells those who follow what is new.
-- KEYS[1] hash rag:flight:{<scope>:<digest>}   KEYS[2] stream rag:flight:{<scope>:<digest>}:words
-- ARGV: fence, channel prefix, <scope>:<digest>, kept_ms, body ...
-- Gives how many follow; -1 where the lead is another's.
if not leads(KEYS[1], ARGV[1]) then return -1 end
return tell(KEYS[1], KEYS[2], ARGV[3], ARGV[2], ARGV[1], ARGV[4], {unpack(ARGV, 5)})
