-- The canary: tells one node's listener how the logs that it follows stand. Whatever was published before
-- comes before it on the listener's connection, so a log that is further than was heard has a hole.
-- ARGV: the channel, then logs. Returns Redis's time in ms.
local lines = {}
for i = 2, #ARGV do
  local found = redis.call('HMGET', K .. 'meta:' .. ARGV[i], 'epoch', 'number')
  lines[#lines + 1] = ARGV[i] .. ' ' .. (found[1] or '-') .. ' ' .. (found[2] or '0')
end
redis.call('PUBLISH', ARGV[1], table.concat(lines, '\n'))
return now_ms()
