#!lua
-- Add numbers to fields of one hash, once for each number of a writer.
--
-- KEYS[1] the hash; ARGV[1] the writer's field, ARGV[2] the number of this call, ARGV[3..] field,
-- increment, field, increment, ...
-- Answers 1 when the numbers were added, 0 when this call or a later one of the writer was before.
--
-- Exactly one write command, and nothing that can fail after it, as in fenced_save.lua.
local hash, writer, number = KEYS[1], ARGV[1], ARGV[2]
if #KEYS ~= 1 or #ARGV < 4 or #ARGV % 2 ~= 0 or #ARGV > 4100 then
  return redis.error_reply('ROLLOUTD wrong number of arguments')
end
local names = {writer}
for at = 3, #ARGV, 2 do names[#names + 1] = ARGV[at] end
local stored = redis.call('HMGET', hash, unpack(names))
if stored[1] and (tonumber(stored[1]) or 0) >= tonumber(number) then return 0 end
local words = {writer, number}
for at = 2, #names do
  words[#words + 1] = names[at]
  local sum = (tonumber(stored[at] or '0') or 0) + tonumber(ARGV[2 * at])
  words[#words + 1] = string.format('%.0f', sum)
end
redis.call('HSET', hash, unpack(words))
return 1
