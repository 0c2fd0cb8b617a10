-- Finds the first change of a person's switches in a log after a number (guarantee 3, for replays).
-- In:  ARGV = log, user, number.
-- Out: the change, or false.
local from = string.format('(%s-0', ARGV[3])
while true do
  local items = redis.call('XRANGE', K .. 'changes:' .. ARGV[1], from, '+', 'COUNT', 200)
  for _, item in ipairs(items) do
    if item[2][2] == ARGV[2] then return item[2][4] end
  end
  if #items < 200 then return false end
  from = '(' .. items[200][1]
end
