-- Who was away at a time.
-- In:  ARGV = length of a lease and the shortest absence in ms, then in MessagePack people in turn with times (ms).
-- Out: a byte for each: 1 for somebody who had no stream from then on until the shortest absence was over.
-- `Stay.was_there` says the same.
local lease, away = tonumber(ARGV[1]), tonumber(ARGV[2])
local asked = cmsgpack.unpack(ARGV[3])
local people, there, now = {}, {}, now_ms()
for i = 1, #asked, 2 do people[#people + 1] = asked[i] end
for _, place in ipairs(redis.call('SMEMBERS', K .. 'present')) do
  local key = K .. 'presence:' .. place
  local ends = tonumber(redis.call('HGET', key, '') or 0)
  local last = ends > now and now or ends - lease
  for i, told in ipairs(redis.call('HMGET', key, unpack(people))) do
    if told and not there[i] then
      local streams, since, left = string.match(told, '(%d+) (%d+) (%d+)')
      local at = asked[2 * i]
      streams, since, left = tonumber(streams), tonumber(since), tonumber(left)
      if streams > 0 and since <= at + away and last >= at then
        there[i] = true
      elseif left >= at and (streams > 0 or since <= at + away) then
        there[i] = true
      end
    end
  end
end
local found = {}
for i = 1, #people do found[i] = there[i] and '0' or '1' end
return table.concat(found)
