-- Takes a document out of service. What is left to do is work for whichever worker takes it on.
-- KEYS[1] hash  rag:doc:<id>          KEYS[2] string  rag:doc:<id>:text      KEYS[3] string  rag:doc:<id>:draft
-- KEYS[4] hash  rag:doc:<id>:work     KEYS[5] hash    rag:corpus:<owner>     KEYS[6] hash    rag:corpus:state
-- KEYS[7] zset  rag:corpus:work       KEYS[8] zset    rag:corpus:<owner>:documents
-- ARGV: id, tenant
-- Returns 1, or 0 where the tenant has no such document.
local id, tenant = ARGV[1], ARGV[2]
local owner, before, chunks = unpack(redis.call('HMGET', KEYS[1], 'tenant', 'revision', 'chunks'))
if owner ~= tenant then return 0 end

local revision = next_revision(KEYS[6])
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
redis.call('ZREM', KEYS[8], id)
if tonumber(before) > 0 then
  count(KEYS[5], tenant, -1, -tonumber(chunks))
  local epoch = redis.call('HINCRBY', KEYS[6], 'epoch', 1)
  local state = redis.call('HGETALL', KEYS[6])
  for i = 1, #state, 2 do -- who had embedded all, has embedded all that is left
    if string.sub(state[i], 1, 5) == 'done:' and tonumber(state[i + 1]) == epoch - 1 then
      redis.call('HSET', KEYS[6], state[i], epoch)
    end
  end
end
redis.call('HSET', KEYS[4], 'id', id, 'revision', revision, 'phase', 'tell', 'tenant', tenant, 'gone', 1,
  'asked_ms', int(now_ms()))
redis.call('ZADD', KEYS[7], '-' .. int(now_ms()), id) -- before all that is to be embedded
return 1
