-- Says who is at a place, and renews its lease.
-- In:  ARGV = place, length of the lease and how long all is kept after its end in ms, 1 for a new place, then
--      people in turn with "STREAMS SINCE LEFT", or "" for one who is to be forgotten.
-- Out: 1; 0 where the lease has ended: nothing was written.
local key = K .. 'presence:' .. ARGV[1]
local now = now_ms()
if ARGV[4] ~= '1' and tonumber(redis.call('HGET', key, '') or 0) <= now then return 0 end
-- Nobody has the empty name.
redis.call('HSET', key, '', string.format('%.0f', now + tonumber(ARGV[2])))
for i = 5, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', key, ARGV[i])
  else
    redis.call('HSET', key, ARGV[i], ARGV[i + 1])
  end
end
redis.call('PEXPIRE', key, tonumber(ARGV[2]) + tonumber(ARGV[3]))
redis.call('SADD', K .. 'present', ARGV[1])
return 1
