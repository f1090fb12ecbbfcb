-- The version of the keys in Redis, which all workers agree on.
-- KEYS[1] hash  rag:corpus:schema  version, since_ms, by, release

-- name: settle
-- Raises the version to this worker's, if it may. The minor version only grows: fields of that version may exist.
-- ARGV: major, minor, 1 if no worker of an older major version is alive, worker, release
-- Returns the version that applies, or '' if there is none yet and older workers are alive.
local major, minor, alone = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local version = redis.call('HGET', KEYS[1], 'version')
if version then
  local there, minor_there = version:match('^(%d+)%.(%d+)$')
  there, minor_there = tonumber(there), tonumber(minor_there)
  if not there or major < there then return version end
  if major == there and minor <= minor_there then return version end
  if major > there and not alone then return version end
elseif not alone then
  return ''
end
version = ARGV[1] .. '.' .. ARGV[2]
redis.call('HSET', KEYS[1], 'version', version, 'by', ARGV[4], 'release', ARGV[5], 'since_ms', int(now_ms()))
return version
