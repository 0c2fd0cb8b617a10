-- Takes from an allowance that refills with time: its key lives for as long as it isn't whole.
-- In:  ARGV = its name, the ms of refilling that are taken, from how many ms on nothing is (-1: always).
-- Out: whether it was taken (1 or 0), and in how many ms the allowance is whole again.
local key = K .. 'spent:' .. ARGV[1]
local left, most = math.max(redis.call('PTTL', key), 0), tonumber(ARGV[3])
if most >= 0 and left >= most then return {0, left} end
left = left + tonumber(ARGV[2])
if left > 0 then redis.call('SET', key, '', 'PX', string.format('%.0f', left)) end
return {1, left}
