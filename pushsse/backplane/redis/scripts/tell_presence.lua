-- Says who is at a node, and renews its lease.
-- In:  ARGV = node, length of the lease in ms, 1 to drop what was told before, then people in turn with
--      "STREAMS SINCE LEFT", or "" for one who is to be forgotten.
-- Out: 1; 0 where the lease had ended, and with it all that was told: nothing was written.
local key = K .. 'presence:' .. ARGV[1]
if ARGV[3] == '1' then
  redis.call('DEL', key)
elseif redis.call('EXISTS', key) == 0 then
  return 0
end
-- Nobody has the empty name: with it the key exists while the node has nobody.
redis.call('HSET', key, '', '')
for i = 4, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', key, ARGV[i])
  else
    redis.call('HSET', key, ARGV[i], ARGV[i + 1])
  end
end
redis.call('PEXPIRE', key, ARGV[2])
redis.call('SADD', K .. 'present', ARGV[1])
return 1
