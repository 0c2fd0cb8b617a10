-- Where people are.
-- In:  ARGV = people.
-- Out: node, then what it has told of each of them, or nil; the next node, …
-- One script, so that nobody who moves from one node to another is seen on neither because of the time between
-- two commands.
local found = {}
for _, node in ipairs(redis.call('SMEMBERS', K .. 'present')) do
  local key = K .. 'presence:' .. node
  if redis.call('EXISTS', key) == 1 then
    found[#found + 1] = node
    found[#found + 1] = redis.call('HMGET', key, unpack(ARGV))
  else
    -- Its lease has ended. A node that lives tells all of it again, and is among the nodes then.
    redis.call('SREM', K .. 'present', node)
  end
end
return found
