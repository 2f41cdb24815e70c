#!lua
-- Write a flag's switch and share, unless a newer revision or a lower foreign edit is stored.
--
-- KEYS: switch, share, marker. ARGV: revision, switch, share, the percentage that they mean, then
-- switch and share as last read ('' for missing). Answers 'written', 'newer' or 'edited'.
--
-- Exactly one write command: several would reach the append-only file as MULTI..EXEC, of which a
-- torn tail keeps a part.
local function percent_of(switch, share)
  if switch ~= 'true' then return 0 end
  return tonumber(share) or 100
end
local revision, percent = tonumber(ARGV[1]), tonumber(ARGV[4])
local stored = redis.call('MGET', KEYS[1], KEYS[2], KEYS[3])
local switch, share = stored[1] or '', stored[2] or ''
local marked, marked_switch, marked_share = string.match(stored[3] or '', '^(%d+) (%S*) (%S*)$')
if marked then
  if tonumber(marked) > revision then return 'newer' end
  -- Two documents of one revision cannot both be right; the lower percentage harms no user.
  local is_lower = percent_of(marked_switch, marked_share) < percent
  if tonumber(marked) == revision and is_lower then return 'newer' end
end
local is_unread = switch ~= ARGV[5] or share ~= ARGV[6]
local is_ours = marked and switch == marked_switch and share == marked_share
if marked and is_unread and not is_ours and percent_of(switch, share) < percent then
  return 'edited'
end
local marker = table.concat({ARGV[1], ARGV[2], ARGV[3]}, ' ')
redis.call('MSET', KEYS[1], ARGV[2], KEYS[2], ARGV[3], KEYS[3], marker)
return 'written'
