-- The leader's last word. The flight is gone; its words are kept for those who follow.
-- KEYS[1] hash rag:flight:{<scope>:<digest>}   KEYS[2] stream rag:flight:{<scope>:<digest>}:words
-- ARGV: fence, channel prefix, <scope>:<digest>, kept_ms, body
-- Gives 1; 0 where the lead is another's.
if not leads(KEYS[1], ARGV[1]) then return 0 end
tell(KEYS[1], KEYS[2], ARGV[3], ARGV[2], ARGV[1], ARGV[4], {ARGV[5]})
redis.call('UNLINK', KEYS[1])
return 1
