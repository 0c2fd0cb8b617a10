-- Drops an answer so far, and remembers which attempt has ended, so that nothing more grows in it.
-- In:  ARGV = question, attempt, how long that is remembered (ms).
local key = K .. 'answer:' .. ARGV[1]
local attempt = redis.call('HGET', key, 'attempt')
if attempt and tonumber(attempt) > tonumber(ARGV[2]) then return 0 end
redis.call('DEL', key, key .. ':text', key .. ':parts')
redis.call('HSET', key, 'attempt', ARGV[2], 'ended', 1)
redis.call('PEXPIRE', key, ARGV[3])
return 1
