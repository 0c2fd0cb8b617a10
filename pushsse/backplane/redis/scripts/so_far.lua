-- Reads an answer so far as it is at one moment.
-- In:  ARGV = question.
-- Out: {attempt, number of the last delta, status, text, parts}; nothing where there is none, or it has ended.
local key = K .. 'answer:' .. ARGV[1]
local found = redis.call('HMGET', key, 'attempt', 'seq', 'bytes', 'status', 'ended')
if not found[1] or found[5] then return false end
local bytes, text = tonumber(found[3]), ''
if bytes > 0 then text = redis.call('GETRANGE', key .. ':text', 0, bytes - 1) end
return {tonumber(found[1]), tonumber(found[2]), found[4], text, redis.call('LRANGE', key .. ':parts', 0, -1)}
