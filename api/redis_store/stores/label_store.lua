-- Labels: whether cached answers were right for later questions.
--   stream  rag:labels:<scope>   the newest labels of one scope
--   stream  rag:labels           the newest labels of all scopes, without texts
--   stream  rag:labels:pairs     the newest pairs of questions with their verdicts
--   stream  rag:labels:retracted IDs of labels that were deleted from the pool
--   zset    rag:labels:scopes    the scopes' streams -> time of their newest label (ms)
--   string  rag:labels:shadow    how many shadow calls the fleet has made in the current minute

-- name: append
-- Appends a label to its scope and to the pool, and the pair of questions if it is kept. Above a number of scopes, the
-- labels of the one that got none for the longest time are deleted. Its labels in the pool stay.
-- KEYS[1] stream the scope's   KEYS[2] stream the pool   KEYS[3] stream the pairs   KEYS[4] zset the scopes
-- ARGV: lifetime_ms, lifetime_ms of a scope's labels, most labels of a scope, of the pool, most pairs, most scopes,
--       number of the label's fields, field, value ..., then the pair's fields and values; none if it is not kept
-- Returns the label's IDs in its scope and in the pool.
local FIRST, scope, scopes, now = 8, KEYS[1], KEYS[4], now_ms()
local lifetime, of_scope, most_scopes, last = ARGV[1], ARGV[2], tonumber(ARGV[6]), FIRST - 1 + 2 * tonumber(ARGV[7])
local function add(key, most, expires, from, to)
  local id = redis.call('XADD', key, 'MAXLEN', most, '*', unpack(ARGV, from, to))
  redis.call('PEXPIRE', key, expires)
  return id
end
local id = add(scope, ARGV[3], of_scope, FIRST, last)
if #ARGV > last then add(KEYS[3], ARGV[5], lifetime, last + 1, #ARGV) end
redis.call('ZADD', scopes, int(now), scope)
redis.call('ZREMRANGEBYSCORE', scopes, '-inf', int(now - tonumber(of_scope)))
for _, oldest in ipairs(redis.call('ZRANGE', scopes, 0, -1 - most_scopes)) do
  redis.call('UNLINK', oldest)
  redis.call('ZREM', scopes, oldest)
end
redis.call('PEXPIRE', scopes, of_scope)
return {id, add(KEYS[2], ARGV[4], lifetime, FIRST, last)}

-- name: retract
-- Deletes a label from its scope and from the pool, and notes this for the keeper, which may have read it.
-- KEYS[1] stream the scope's   KEYS[2] stream the pool   KEYS[3] stream the deleted labels
-- ARGV: its IDs, most deleted labels, their lifetime_ms
-- Returns how many were there.
redis.call('XADD', KEYS[3], 'MAXLEN', ARGV[3], '*', 'label', ARGV[2])
redis.call('PEXPIRE', KEYS[3], ARGV[4])
return redis.call('XDEL', KEYS[1], ARGV[1]) + redis.call('XDEL', KEYS[2], ARGV[2])

-- name: admit
-- Admits a shadow call if the fleet has made fewer than `most` in the current minute, which begins with the first.
-- KEYS[1] string the count   ARGV: most, lifetime_ms
-- Returns 1 or 0.
local made = tonumber(redis.call('GET', KEYS[1]) or 0)
if made >= tonumber(ARGV[1]) then return 0 end
if redis.call('INCR', KEYS[1]) == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
