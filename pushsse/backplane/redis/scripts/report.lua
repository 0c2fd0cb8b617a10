-- Keeps what a node says about itself, for the length of its lease.
-- In:  ARGV = node, length of the lease in ms, the report; an empty report ends the lease.
local key = K .. 'reports'
if ARGV[3] == '' then
  redis.call('HDEL', key, ARGV[1])
else
  redis.call('HSET', key, ARGV[1], string.format('%.0f ', now_ms() + tonumber(ARGV[2])) .. ARGV[3])
  redis.call('PEXPIRE', key, math.max(tonumber(ARGV[2]), redis.call('PTTL', key)))
end
return 1
