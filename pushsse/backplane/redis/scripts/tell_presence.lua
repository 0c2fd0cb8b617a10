-- Says who is at a place, and renews its lease.
-- In:  ARGV = place, length of the lease and how long all is kept after its end in ms, 1 for a new place, which
--      time it is that its node tells of it, then people in turn with "STREAMS SINCE LEFT", or "" for one who is to
--      be forgotten.
-- Out: 1; 0 where the lease has ended, or Redis came back without what was told last: the lease ends, and nothing is
--      told.
local key, NUMBER = K .. 'presence:' .. ARGV[1], tonumber(ARGV[5])
local now = now_ms()
if ARGV[4] ~= '1' then
  local ends, told = unpack(redis.call('HMGET', key, '', ' '))
  if tonumber(ends or 0) <= now then return 0 end
  told = tonumber(told or 0)
  -- The same number comes again where the reply was lost: it tells all that the first one did.
  if told ~= NUMBER and told ~= NUMBER - 1 then
    redis.call('HSET', key, '', string.format('%.0f', now))
    return 0
  end
end
-- Nobody has the empty name, or a space for one.
redis.call('HSET', key, '', string.format('%.0f', now + tonumber(ARGV[2])), ' ', NUMBER)
for i = 6, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', key, ARGV[i])
  else
    redis.call('HSET', key, ARGV[i], ARGV[i + 1])
  end
end
redis.call('PEXPIRE', key, tonumber(ARGV[2]) + tonumber(ARGV[3]))
redis.call('SADD', K .. 'present', ARGV[1])
return 1
