-- Gives a lead up, or renews it.
-- KEYS[1] hash rag:flight:{<scope>:<digest>}:refresh   ARGV: fence, lease_ms (0: it ends)
if not leads(KEYS[1], ARGV[1]) then return 0 end
if ARGV[2] == '0' then return redis.call('UNLINK', KEYS[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
