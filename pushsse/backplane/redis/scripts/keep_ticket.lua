-- Keeps a new ticket.
-- In:  ARGV = name, user, when what it was made with was issued ('' if unknown), how long it opens by itself and
--      how long in all (ms from now), how long it is kept until it is opened (ms).
-- Out: nothing. One script, so that no ticket is left without an end.
local now, lives = now_ms(), tonumber(ARGV[5])
local fresh = math.min(tonumber(ARGV[4]), lives)
local key = K .. 'ticket:' .. ARGV[1]
redis.call('HSET', key, 'user', ARGV[2], 'issued', ARGV[3], 'fresh', string.format('%.0f', now + fresh),
  'ends', string.format('%.0f', now + lives))
redis.call('PEXPIRE', key, ARGV[6])
return false
