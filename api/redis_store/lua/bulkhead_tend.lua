-- Renews the leases of one worker's tickets, those too that were lost, and hands out what ended leases left.
-- Keys, ARGV[1..3]: see bulkhead_common.lua. ARGV[4..]: the number of its permits, their tickets, the tickets in line
-- Returns the tickets that hold a permit from now on, and those in line that held one already
local held = tonumber(ARGV[4])
for i = 5, 4 + held do lend(KEYS[1], ARGV[i]) end
local granted = {}
for i = 5 + held, #ARGV do
  local ends = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if ends then
    lend(KEYS[1], ARGV[i])
    granted[#granted + 1] = ARGV[i]
  else
    enqueue(ARGV[i])
  end
end
drop_ended()
for _, ticket in ipairs(hand_out()) do granted[#granted + 1] = ticket end
return granted
