-- Sends the canary: a message to one node's own listener with the state of the logs that it follows.
-- In:  ARGV = the canary's channel, then the logs.
-- Out: Redis's time in ms. The message has a line for each log: LOG EPOCH NUMBER; a log without state: LOG - 0.
-- Guarantee 2: what was published before this script reaches the listener before the canary, on one connection.
-- A log that is further here than the listener has heard therefore has a hole, and one that is not as far has
-- gone back. That holds because reading the state and publishing it are one script.
local lines = {}
for i = 2, #ARGV do
  local found = redis.call('HMGET', K .. 'meta:' .. ARGV[i], 'epoch', 'number')
  lines[#lines + 1] = ARGV[i] .. ' ' .. (found[1] or '-') .. ' ' .. (found[2] or '0')
end
redis.call('PUBLISH', ARGV[1], table.concat(lines, '\n'))
return now_ms()
