-- Takes or keeps what one node does for all, and notes how far that has got.
-- In:  ARGV = duty, node, length of the lease in ms, then logs in turn with "EPOCH NUMBER".
-- Out: nil where another node has it; else logs in turn with how far it has got.
-- One script: what a node notes after it has lost the duty would take back what another has noted since.
local key = K .. 'duty:' .. ARGV[1]
local holder = redis.call('GET', key)
if holder and holder ~= ARGV[2] then return false end
redis.call('SET', key, ARGV[2], 'PX', ARGV[3])
local marks = key .. ':marks'
for i = 4, #ARGV, 2 do redis.call('HSET', marks, ARGV[i], ARGV[i + 1]) end
return redis.call('HGETALL', marks)
