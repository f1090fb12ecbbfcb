-- Labels: whether cached answers were right for later questions.
--   stream  rag:labels:<scope>   the newest labels of one scope
--   stream  rag:labels           the newest labels of all scopes, without texts
--   stream  rag:labels:pairs     the newest pairs of questions with their verdicts
--   string  rag:labels:shadow    how many shadow calls the fleet has made in the current minute

-- name: append
-- Appends a label to its scope and to the pool, and the pair of questions if it is kept.
-- KEYS[1] stream the scope's   KEYS[2] stream the pool   KEYS[3] stream the pairs
-- ARGV: lifetime_ms, most labels of a scope, of the pool, most pairs, number of the label's fields, field, value ...,
--       then the pair's fields and values; none if it is not kept
-- Returns the label's IDs in its scope and in the pool.
local lifetime, fields = ARGV[1], 2 * tonumber(ARGV[5])
local function add(key, most, first, last)
  local id = redis.call('XADD', key, 'MAXLEN', most, '*', unpack(ARGV, first, last))
  redis.call('PEXPIRE', key, lifetime)
  return id
end
local id = add(KEYS[1], ARGV[2], 6, 5 + fields)
if #ARGV > 5 + fields then add(KEYS[3], ARGV[4], 6 + fields, #ARGV) end
return {id, add(KEYS[2], ARGV[3], 6, 5 + fields)}

-- name: retract
-- Deletes a label from its scope and from the pool.
-- KEYS[1] stream the scope's   KEYS[2] stream the pool   ARGV: its IDs
-- Returns how many were there.
return redis.call('XDEL', KEYS[1], ARGV[1]) + redis.call('XDEL', KEYS[2], ARGV[2])

-- name: admit
-- Admits a shadow call if the fleet has made fewer than `most` in the current minute, which begins with the first.
-- KEYS[1] string the count   ARGV: most, lifetime_ms
-- Returns 1 or 0.
local made = tonumber(redis.call('GET', KEYS[1]) or 0)
if made >= tonumber(ARGV[1]) then return 0 end
if redis.call('INCR', KEYS[1]) == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
