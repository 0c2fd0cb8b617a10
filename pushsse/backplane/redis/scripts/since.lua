-- Finds where the past begins: for each log the number before its first entry at or after a time.
-- In:  ARGV = time in ms, then the logs.
-- Out: the numbers, in the order of the logs.
-- A binary search: times never fall within a log (see `append` in publish.lua).
local AT = tonumber(ARGV[1])
local numbers = {}
for i = 2, #ARGV do
  local meta = load(ARGV[i], '')
  local low, high = meta.first, meta.number + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    local entry = redis.call('XRANGE', meta.stream, id(middle), id(middle))[1]
    if entry and tonumber(entry[2][4]) >= AT then
      high = middle
    else
      low = middle + 1
    end
  end
  numbers[#numbers + 1] = low - 1
end
return numbers
