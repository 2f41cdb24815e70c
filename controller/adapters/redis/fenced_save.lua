#!lua
-- Write fields and a new fence into one hash, if the fence is still the expected one.
--
-- KEYS[1] the hash; ARGV[1] name of the fence's field, ARGV[2] the fence expected ('' for none),
-- ARGV[3] the fence after, ARGV[4] digest of the arguments, ARGV[5] name of a second field that is
-- compared ('' for none), ARGV[6] its required content ('' for nothing), ARGV[7..] field, value,
-- field, value, ...
-- Answers {1} when written, now or by an earlier try with the same arguments; {0} or {0, fence}
-- when nothing was written, with the fence that is stored.
--
-- Exactly one write command, and nothing that can fail after it. Several would reach the
-- append-only file as MULTI..EXEC, of which a torn tail keeps a part; and a script that fails
-- half-way is not rolled back. Fences are compared as text, because Lua's numbers are doubles. The
-- shebang makes the server refuse the script before line 1 when it is out of memory.
local hash, fence, expected, after, digest = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local guard, content = ARGV[5], ARGV[6]
if #KEYS ~= 1 or #ARGV < 6 or #ARGV % 2 ~= 0 or #ARGV > 7900 then
  return redis.error_reply('ROLLOUTD wrong number of arguments')
end
if string.find(expected, '%D') or after == '' or string.find(after, '%D') then
  return redis.error_reply('ROLLOUTD a fence is digits')
end
local stored = redis.call('HMGET', hash, fence, 'digest')
if stored[1] == after and stored[2] == digest then return {1} end
if (stored[1] or '') ~= expected then return {0, stored[1]} end
if guard ~= '' and (redis.call('HGET', hash, guard) or '') ~= content then return {0, stored[1]} end
redis.call('HSET', hash, fence, after, 'digest', digest, unpack(ARGV, 7))
return {1}
