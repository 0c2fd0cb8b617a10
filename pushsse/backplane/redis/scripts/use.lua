-- Counts one use of something in its window of time, which begins with the first use.
-- In:  ARGV = the name of what is used, the length of a window in ms.
-- Out: the uses in this window with this one, and how many ms of it are left.
local key = K .. 'used:' .. ARGV[1]
local count = redis.call('INCRBY', key, 1)
local left = redis.call('PTTL', key)
-- A key without an end would count for ever, and its person would be refused for ever.
if left < 0 then
  left = tonumber(ARGV[2])
  redis.call('PEXPIRE', key, left)
end
return {count, math.max(left, 1)}
