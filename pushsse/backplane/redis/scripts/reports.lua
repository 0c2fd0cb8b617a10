-- What nodes say about themselves.
-- Out: node, report, node, report, … of those whose lease hasn't ended; the others are forgotten.
local key = K .. 'reports'
local now, found = now_ms(), {}
local told = redis.call('HGETALL', key)
for i = 1, #told, 2 do
  local space = string.find(told[i + 1], ' ', 1, true)
  if tonumber(string.sub(told[i + 1], 1, space - 1)) > now then
    found[#found + 1] = told[i]
    found[#found + 1] = string.sub(told[i + 1], space + 1)
  else
    redis.call('HDEL', key, told[i])
  end
end
return found
