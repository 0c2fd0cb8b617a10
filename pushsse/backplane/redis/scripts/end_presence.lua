-- The lease of a place ends now.
-- In:  ARGV = place.
local key = K .. 'presence:' .. ARGV[1]
if redis.call('EXISTS', key) == 1 then redis.call('HSET', key, '', string.format('%.0f', now_ms())) end
return 1
