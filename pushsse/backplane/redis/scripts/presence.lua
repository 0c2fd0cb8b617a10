-- Where people are.
-- In:  ARGV = people, in MessagePack.
-- Out: the time, then place, when its lease ends, what it has told of each of them, or nil; the next place, …
-- One script, so that nobody who moves from one node to another is seen on neither because of the time between
-- two commands.
local people = cmsgpack.unpack(ARGV[1])
local found = {string.format('%.0f', now_ms())}
for _, place in ipairs(places()) do
  local name, key, ends = unpack(place)
  found[#found + 1] = name
  found[#found + 1] = ends
  found[#found + 1] = redis.call('HMGET', key, unpack(people))
end
return found
