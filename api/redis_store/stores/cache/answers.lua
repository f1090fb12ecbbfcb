-- Stored answers of one partition of the cache: reading, storing, eviction and invalidation.
--   hash  rag:cache:<scope>:<digest>  an entry: created_ms, expires_ms, tenant, the answer ...
--   hash  rag:flight:{...}            the generation that may store the entry: fence, follower:<worker>
--   hash  rag:invalidated             invalidation tag -> when it was set (ms); `began`: the first time of all (ms)
--   hash  rag:quarantine:<scope>:<digest>  an entry that a user judged bad, under another name: no look-up finds it
--   zset  rag:quarantined             quarantined entry -> when it was quarantined (ms)
--   hash  rag:votes:<scope>:<digest>  the votes on an entry's answer
--   hash  rag:corpus:<owner>         the state of a tenant's documents; this feature only reads it
-- The five eviction keys:
--   zset  rag:evict:cache             entry -> its score; rag:evict:cache:<tenant> has the entries of one tenant
--   zset  rag:expire:cache            entry -> when it expires (ms)
--   hash  rag:uses:cache              entry -> how often it was used; last_evicted, last_evicted:<tenant>
--   hash  rag:tenant:cache            entry -> its tenant
--   zset  rag:tenants:cache           tenant -> how many entries it has

-- name: find
-- Reads an entry, Redis's clock to compute its age, and when answers with these tags were last invalidated.
-- KEYS[1] hash the entry   KEYS[2] hash rag:invalidated   KEYS[3] hash rag:corpus:<owner>: not on a cluster, where it
-- has another slot, and only if an answer needs it
-- ARGV: number of tags, tag ..., names of the fields to read
-- Returns {now_ms, invalidated_ms (0: never), value, value ...}. If there is no entry, its values are missing, or with
-- KEYS[3]: nil, field, value, field, value ... of the documents.
local tags, last = tonumber(ARGV[1]), 0
for _, at in ipairs(redis.call('HMGET', KEYS[2], unpack(ARGV, 2, 1 + tags))) do
  if at then last = math.max(last, tonumber(at)) end
end
local reply = {int(now_ms()), int(last)}
local values = redis.call('HMGET', KEYS[1], unpack(ARGV, 2 + tags))
if KEYS[3] and not values[1] then
  reply[#reply + 1] = false
  values = redis.call('HGETALL', KEYS[3])
end
for _, value in ipairs(values) do reply[#reply + 1] = value end
return reply

-- name: reread
-- Reads entries, and Redis's clock.
-- KEYS: hashes, the entries   ARGV: names of the fields to read
-- Returns {now_ms, values of the first entry, values of the second ...}. Those of a missing entry are all missing.
local reply = {int(now_ms())}
for i, entry in ipairs(KEYS) do reply[i + 1] = redis.call('HMGET', entry, unpack(ARGV)) end
return reply

-- name: expire
-- Makes entries stale now. Missing and stale entries stay as they are.
-- KEYS: hashes, the entries
-- Returns how many were fresh.
local now, ended = now_ms(), 0
for _, entry in ipairs(KEYS) do
  local expires = tonumber(redis.call('HGET', entry, 'expires_ms') or 0)
  if expires > now then
    redis.call('HSET', entry, 'expires_ms', int(now))
    ended = ended + 1
  end
end
return ended

-- name: invalidate
-- Sets invalidation tags, before the stored answers are deleted. From then on, answers that were asked for earlier are
-- not stored; with `corpus:<tenant>` they are stored only after another check of the documents.
-- KEYS[1] hash rag:invalidated
-- ARGV: lifetime_ms, then tags: `all`, `running`, `tenant:<tenant>`, `release:<version>`, `question:<digest>`,
--       `source:<document id>`, `corpus:<tenant>`
-- Returns now_ms. Drops tags older than the lifetime: no generation takes that long. `began` stays.
local now = now_ms()
local lifetime = tonumber(ARGV[1])

local old = {}
local noted = redis.call('HGETALL', KEYS[1])
for i = 1, #noted, 2 do
  if noted[i] ~= 'began' and tonumber(noted[i + 1]) < now - lifetime then old[#old + 1] = noted[i] end
end
for i = 1, #old do redis.call('HDEL', KEYS[1], old[i]) end

local text = int(now)
for i = 2, #ARGV do redis.call('HSET', KEYS[1], ARGV[i], text) end
redis.call('PEXPIRE', KEYS[1], lifetime)
return text

-- shared
-- An entry's score decides when it is evicted: the lowest score goes first.
--
-- A score is a time (ms): the last use, plus STEP for each doubling of the uses and for each doubling of the answer's
-- tokens above FEW_TOKENS, up to MOST_STEPS for either. So an answer of 2,000 tokens that was used 30 times outlives
-- one of 10 tokens that was last used at the same time by 50 minutes. The bonus is bounded, so an entry that nobody
-- asks for goes in the end.
-- If entries arrive faster than the bonus runs out, the last evicted score replaces the clock: a new entry scores at
-- least as high as the last one evicted, and can compete with older entries.
local STEP, MOST_STEPS, FEW_TOKENS = 300000, 10, 64
-- The last evicted score is also kept per tenant, since a tenant with many entries loses its own first.
local LAST_EVICTED = 'last_evicted'

local function doublings(count) return math.min(math.log(1 + math.max(count, 0)) / math.log(2), MOST_STEPS) end

-- The five eviction keys of a partition. A script gets them in this order, from KEYS[first] on.
-- Redis may evict any of them, and older releases write only the first three. So the count of a tenant's entries is
-- taken from its set each time the set changes, and the next use of an entry adds what is missing.
local function eviction_keys(first)
  return {evict = KEYS[first], expire = KEYS[first + 1], uses = KEYS[first + 2], tenant = KEYS[first + 3],
    tenants = KEYS[first + 4]}
end

local function of_tenant(keys, tenant) return keys.evict .. ':' .. tenant end

-- Makes a key live at least this long (ms).
local function extend(key, lifetime)
  if redis.call('PTTL', key) < lifetime then redis.call('PEXPIRE', key, lifetime) end
end

local function count_entries(keys, tenant)
  local entries = of_tenant(keys, tenant)
  local count = redis.call('ZCARD', entries)
  if count > 0 then
    redis.call('ZADD', keys.tenants, count, tenant)
    extend(keys.tenants, redis.call('PTTL', entries))
  else
    redis.call('ZREM', keys.tenants, tenant)
    redis.call('HDEL', keys.uses, LAST_EVICTED .. ':' .. tenant)
  end
end

-- Computes and stores an entry's score.
local function update_score(keys, entry, tenant, uses, tokens)
  local last = redis.call('HMGET', keys.uses, LAST_EVICTED, LAST_EVICTED .. ':' .. tenant)
  local credit = STEP * (doublings(uses) + doublings((tokens or 0) / FEW_TOKENS))
  local score = int(math.max(now_ms(), tonumber(last[1] or 0), tonumber(last[2] or 0)) + credit)
  redis.call('ZADD', keys.evict, score, entry)
  redis.call('ZADD', of_tenant(keys, tenant), score, entry)
  redis.call('HSET', keys.tenant, entry, tenant)
  count_entries(keys, tenant)
end

-- Removes an entry from the eviction keys.
local function forget(keys, entry)
  redis.call('ZREM', keys.evict, entry)
  redis.call('ZREM', keys.expire, entry)
  redis.call('HDEL', keys.uses, entry)
  local tenant = redis.call('HGET', keys.tenant, entry)
  if tenant then
    redis.call('HDEL', keys.tenant, entry)
    redis.call('ZREM', of_tenant(keys, tenant), entry)
    count_entries(keys, tenant)
  end
end

-- Makes the eviction keys live as long as the entry that expires last.
local function extend_all(keys, tenant, lifetime)
  for _, key in pairs(keys) do extend(key, lifetime) end
  extend(of_tenant(keys, tenant), lifetime)
end

-- Evicts the entry with the lowest score: of the tenant with the most entries if it has more than `share`, else of all.
-- Never evicts the entry just `stored`. Returns 1, or 0 if the entry was gone already.
local function evict_one(keys, stored, share)
  local most = redis.call('ZRANGE', keys.tenants, 0, 0, 'REV', 'WITHSCORES')
  local set, last = keys.evict, LAST_EVICTED
  if most[1] and tonumber(most[2]) > share then
    set, last = of_tenant(keys, most[1]), LAST_EVICTED .. ':' .. most[1]
  end
  local least = redis.call('ZRANGE', set, 0, 1, 'WITHSCORES')
  local at = least[1] == stored and 3 or 1
  if not least[at] then
    set, last = keys.evict, LAST_EVICTED
    least = redis.call('ZRANGE', set, 0, 1, 'WITHSCORES')
    at = least[1] == stored and 3 or 1
  end
  local entry = least[at]
  local gone = redis.call('UNLINK', entry)
  if gone == 1 then redis.call('HSET', keys.uses, last, int(tonumber(least[at + 1]))) end
  redis.call('ZREM', set, entry)
  forget(keys, entry)
  if most[1] then count_entries(keys, most[1]) end
  return gone
end

-- name: store
-- Stores an answer with an absolute lifetime and keeps the number of entries within its limit. Ends the flight, unless
-- other workers follow it: their leader must tell them first.
-- KEYS[1] hash the entry   KEYS[2] hash rag:invalidated   KEYS[3..7] the eviction keys   KEYS[8] hash the flight
-- ARGV: ttl_ms, stale_ms, max_size, the tenant's share of it, tenant, fence ('': none), asked_ms, tokens, tag of the
--       tenant's documents ('': the answer uses none), when the documents were read (ms), lifetime_ms of the tags,
--       number of tags, tag ..., field, value ...
-- Returns {created_ms, expires_ms, evicted, 1 if the flight has ended}.
-- Returns {} if another generation has the fence, or a tag was set since the answer was asked for.
-- Returns {'changed', now_ms} if only the documents' tag was set since they were read, or if the tags do not reach back
-- that far: FLUSHALL deletes the tags along with the documents, an eviction deletes only the tags.
local BATCH, SAMPLE, BEGAN, FOLLOWER = 1000, 10, 'began', 'follower:'
local ttl, stale, max_size = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local share, tenant = tonumber(ARGV[4]), ARGV[5]
local fence, asked, tokens = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local documents, read_ms, tags_ms, tags = ARGV[9], tonumber(ARGV[10]), ARGV[11], tonumber(ARGV[12])
if fence ~= '' and redis.call('HGET', KEYS[8], 'fence') ~= fence then return {} end
for _, at in ipairs(redis.call('HMGET', KEYS[2], unpack(ARGV, 13, 12 + tags))) do
  if at and asked > 0 and asked <= tonumber(at) then return {} end
end
local entry, keys, now = KEYS[1], eviction_keys(3), now_ms()

local function is_followed(flight)
  local fields = redis.call('HGETALL', flight)
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, #FOLLOWER) == FOLLOWER and tonumber(fields[i + 1]) > now then return true end
  end
  return false
end

if documents ~= '' then
  local changed, began = unpack(redis.call('HMGET', KEYS[2], documents, BEGAN))
  if not began then
    redis.call('HSET', KEYS[2], BEGAN, int(now))
    redis.call('PEXPIRE', KEYS[2], tags_ms)
  end
  if not began or read_ms < tonumber(began) or read_ms <= tonumber(changed or -1) then return {'changed', int(now)} end
end

-- The first write must be one that Redis refuses while its memory is full. After any other it would allow all writes.
update_score(keys, entry, tenant, tonumber(redis.call('HGET', keys.uses, entry) or 0), tokens)
redis.call('ZADD', keys.expire, int(now + ttl + stale), entry)
redis.call('DEL', entry)
redis.call('HSET', entry, 'created_ms', int(now), 'expires_ms', int(now + ttl), unpack(ARGV, 13 + tags))
redis.call('PEXPIRE', entry, ttl + stale)
if documents ~= '' then redis.call('PEXPIRE', KEYS[2], tags_ms) end

-- Expired entries make room first.
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', keys.expire, '-inf', int(now), 'LIMIT', 0, BATCH)) do
  forget(keys, gone)
end
-- So do entries that Redis itself evicted. Redis does not announce them; random samples find them over time.
if redis.call('ZCARD', keys.evict) > max_size then
  for _, any in ipairs(redis.call('ZRANDMEMBER', keys.evict, SAMPLE)) do
    if redis.call('EXISTS', any) == 0 then forget(keys, any) end
  end
end
local evicted = 0
for _ = 1, math.min(redis.call('ZCARD', keys.evict) - max_size, BATCH) do
  evicted = evicted + evict_one(keys, entry, share)
end
extend_all(keys, tenant, ttl + stale)
local ended = fence ~= '' and not is_followed(KEYS[8])
if ended then redis.call('UNLINK', KEYS[8]) end
return {int(now), int(now + ttl), evicted, ended and 1 or 0}

-- name: join
-- Makes entries one answer group: all take the oldest of their groups' names. A name begins with the time (ms) at which
-- its first entry was stored, so names sort by age, and workers that join the same entries at once agree in the end.
-- KEYS: hashes, the entries   ARGV: created_ms of each; an entry with another is not the one that was compared
-- Returns the group, '' if no entry is left.
local DIGEST, DIGITS = 32, 8
local groups, oldest = {}, ''
for i, entry in ipairs(KEYS) do
  local created, group = unpack(redis.call('HMGET', entry, 'created_ms', 'group'))
  if created == ARGV[i] then
    groups[entry] = group or (created .. '-' .. string.sub(entry, -DIGEST, DIGITS - DIGEST - 1))
    if oldest == '' or groups[entry] < oldest then oldest = groups[entry] end
  end
end
for entry, group in pairs(groups) do
  if group ~= oldest then redis.call('HSET', entry, 'group', oldest) end
end
return oldest

-- name: touch
-- Counts uses of entries and updates their scores. Removes missing entries from the eviction keys, and restores entries
-- that Redis evicted from these keys. Uses are not in the entry's hash: each would index its vector again.
-- KEYS[1..5] the eviction keys   KEYS[6..] hashes, the entries
-- ARGV: minimum lifetime_ms of the eviction keys, the uses of each entry
local keys = eviction_keys(1)
for i = 6, #KEYS do
  local entry = KEYS[i]
  local tokens, tenant = unpack(redis.call('HMGET', entry, 'completion_tokens', 'tenant'))
  if tokens and tenant then
    redis.call('ZADD', keys.expire, 'NX', int(now_ms() + redis.call('PTTL', entry)), entry)
    update_score(keys, entry, tenant, redis.call('HINCRBY', keys.uses, entry, ARGV[i - 4]), tonumber(tokens))
    extend_all(keys, tenant, tonumber(ARGV[1]))
  else
    forget(keys, entry)
  end
end
return 0

-- name: drop
-- Deletes entries, and stops running generations from storing them again.
-- KEYS[1..5] the eviction keys, then for each entry: hash the entry, hash its flight
-- Returns how many entries there were.
local deleted, keys = 0, eviction_keys(1)
for i = 6, #KEYS, 2 do
  deleted = deleted + redis.call('UNLINK', KEYS[i])
  redis.call('UNLINK', KEYS[i + 1])
  forget(keys, KEYS[i])
end
return deleted

-- name: restore
-- Stores an answer from a backup with its original times, if it is still valid and newer than the stored one.
-- KEYS[1] hash the entry   KEYS[2] hash rag:invalidated   KEYS[3..7] the eviction keys   KEYS[8] hash its quarantine
-- ARGV: created_ms, expiry of the entry (ms), when the documents were read (ms), tag of the tenant's documents ('': the
--       answer uses none), max_size, tenant, tokens, uses, number of tags, tag ..., field, value ...
-- Returns the outcome as text; 'changed' if documents have changed since they were read.
local created, gone, read_ms, documents = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local max_size, tenant, tokens = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local uses, tags = tonumber(ARGV[8]), tonumber(ARGV[9])
local entry, keys, now = KEYS[1], eviction_keys(3), now_ms()
if gone <= now then return 'expired' end
local there = tonumber(redis.call('HGET', entry, 'created_ms'))
if there and there >= created then return 'there already' end
if tonumber(redis.call('HGET', KEYS[8], 'created_ms') or 0) >= created then return 'deleted since' end
for _, at in ipairs(redis.call('HMGET', KEYS[2], unpack(ARGV, 10, 9 + tags))) do
  if at and created <= tonumber(at) then return 'deleted since' end
end
if documents ~= '' and read_ms <= tonumber(redis.call('HGET', KEYS[2], documents) or -1) then return 'changed' end
for _, old in ipairs(redis.call('ZRANGEBYSCORE', keys.expire, '-inf', int(now), 'LIMIT', 0, 100)) do
  forget(keys, old)
end
if not there and redis.call('ZCARD', keys.evict) >= max_size then return 'no room' end

uses = math.max(uses, tonumber(redis.call('HGET', keys.uses, entry) or 0))
update_score(keys, entry, tenant, uses, tokens)
if uses > 0 then redis.call('HSET', keys.uses, entry, int(uses)) end
redis.call('ZADD', keys.expire, int(gone), entry)
redis.call('DEL', entry)
redis.call('HSET', entry, unpack(ARGV, 10 + tags))
redis.call('PEXPIREAT', entry, int(gone))
extend_all(keys, tenant, gone - now)
return 'restored'

-- name: vote
-- Records a key's vote on the answer of an entry, in place of its former one. A bad vote takes the entry and its copies
-- out of service: they move to other keys, which no look-up reads. When the last bad vote turns good, they come back.
-- KEYS[1] hash the votes   KEYS[2] hash rag:invalidated   KEYS[3..7] the eviction keys   KEYS[8] zset rag:quarantined,
-- then for each entry: hash the entry, hash its quarantine, hash its flight, hash its refresh. The first is the judged.
-- ARGV: verdict, voter, digest of the answer, group of the answer ('': none), tag of the asked question, lifetime_ms of
--       votes, lifetime_ms of tags, most quarantined entries, field, value ... that explain the quarantine
-- Returns {the key's former verdict ('': none), name of its label, how many entries were quarantined or released}.
local MOST_VOTERS, DIGEST, FIRST, PARTS = 1000, 16, 9, 4
local WHY = {'entry', 'quarantined_ms', 'by', 'request', 'asked', 'status', 'similarity', 'comment'}
local votes, invalidated, quarantined, keys = KEYS[1], KEYS[2], KEYS[8], eviction_keys(3)
local verdict, voter, judged, group, asked = ARGV[1], 'vote:' .. ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local lifetime, tags_ms, most, now = tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8]), now_ms()

-- Copies have the same text, or belong to the same group of answers.
local function has_answer(entry, is_judged)
  local answer, of_group, digest = unpack(redis.call('HMGET', entry, 'answer', 'group', 'answer_digest'))
  if not answer then return false end
  if (digest or string.sub(redis.sha1hex(answer), 1, DIGEST)) == judged then return true end -- it may be encrypted
  return not is_judged and group ~= '' and of_group == group
end

-- Answers that were asked for earlier are not stored any more.
local function invalidate(entry, flight, refresh)
  redis.call('UNLINK', flight, refresh)
  redis.call('HSET', invalidated, 'question:' .. string.match(entry, '[^:]+$'), int(now))
end

local function quarantine(entry, copy, flight, refresh, is_judged)
  local found = has_answer(entry, is_judged)
  if is_judged or found then invalidate(entry, flight, refresh) end
  if not found then return 0 end
  forget(keys, entry)
  redis.call('RENAME', entry, copy)
  redis.call('HSET', copy, 'entry', entry, 'quarantined_ms', int(now), unpack(ARGV, 9))
  redis.call('ZADD', quarantined, int(now), copy)
  return 1
end

-- Whether documents that the entry depends on may have changed while it was quarantined: new documents make entries
-- stale, but find no quarantined ones. Older tags than `tags_ms` are gone.
local function is_outdated(copy)
  local owner, tenant, since = unpack(redis.call('HMGET', copy, 'owner', 'tenant', 'quarantined_ms'))
  if not owner then return false end
  local changed = tonumber(redis.call('HGET', invalidated, 'corpus:' .. (tenant or '')) or 0)
  return changed >= tonumber(since) or now - tonumber(since) >= tonumber(tags_ms)
end

-- Puts an entry back, unless a newer answer has taken its place. It is stale if its documents may have changed.
local function release(entry, copy, _, _, is_judged)
  if not has_answer(copy, is_judged) then return 0 end
  redis.call('ZREM', quarantined, copy)
  if redis.call('EXISTS', entry) == 1 then
    redis.call('UNLINK', copy)
    return 0
  end
  local left = redis.call('PTTL', copy)
  if is_outdated(copy) then
    redis.call('HSET', copy, 'expires_ms', int(math.min(now, tonumber(redis.call('HGET', copy, 'expires_ms')))))
  end
  redis.call('HDEL', copy, unpack(WHY))
  redis.call('RENAME', copy, entry)
  local tenant, tokens = unpack(redis.call('HMGET', entry, 'tenant', 'completion_tokens'))
  redis.call('ZADD', keys.expire, int(now + left), entry)
  update_score(keys, entry, tenant, 0, tonumber(tokens))
  extend_all(keys, tenant, left)
  return 1
end

local function each(change)
  local changed = 0
  for i = FIRST, #KEYS, PARTS do
    changed = changed + change(KEYS[i], KEYS[i + 1], KEYS[i + 2], KEYS[i + 3], i == FIRST)
  end
  return changed
end

local function has_bad_vote()
  local fields = redis.call('HGETALL', votes)
  for i = 2, #fields, 2 do
    if fields[i] == 'bad' then return true end
  end
  return false
end

-- Entries move first: after that, a full Redis accepts the writes that follow.
local changed = verdict == 'bad' and each(quarantine) or 0
if redis.call('HGET', votes, 'answer') ~= judged then redis.call('UNLINK', votes) end
local former = redis.call('HGET', votes, voter) or ''
local label = redis.call('HGET', votes, 'label:' .. ARGV[2]) or ''
if former ~= '' or #redis.call('HGETALL', votes) < 2 * MOST_VOTERS then
  redis.call('HSET', votes, 'answer', judged, voter, verdict)
  redis.call('PEXPIRE', votes, lifetime)
else
  former = verdict -- there is no room to remember this vote, so it counts in no figure and is no label
end
if verdict == 'bad' then
  redis.call('HSET', invalidated, asked, int(now))
  extend(invalidated, tonumber(tags_ms))
  local copies = {}
  for i = FIRST + PARTS, #KEYS, PARTS do
    if redis.call('EXISTS', KEYS[i + 1]) == 1 then copies[#copies + 1] = KEYS[i] end
  end
  redis.call('HSET', votes, 'copies', table.concat(copies, ' '))
elseif not has_bad_vote() then
  changed = each(release)
end

-- Entries that have expired leave the list, and so do the oldest above the limit.
redis.call('ZREMRANGEBYSCORE', quarantined, '-inf', int(now - lifetime))
for _, old in ipairs(redis.call('ZRANGE', quarantined, 0, -1 - most)) do
  redis.call('UNLINK', old)
  redis.call('ZREM', quarantined, old)
end
if redis.call('EXISTS', quarantined) == 1 then redis.call('PEXPIRE', quarantined, lifetime) end
return {former, label, changed}

-- name: note_label
-- Notes the label that a key's vote became.
-- KEYS[1] hash the votes   ARGV: voter, name of the label
-- Returns 1, or 0 if the votes are gone.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'label:' .. ARGV[1], ARGV[2])
return 1
