-- Opens a ticket once more, and tells all nodes.
-- In:  ARGV = name, 1 if the client has a position, how long it is kept after its end (ms), the channel of
--      notices, the notice, to which the number is added.
-- Out: {why not, or '', user, when issued or '', the opening's number, how long the ticket goes on in ms}.
-- One script: of many openings together each has a number of its own, and the nodes hear of them in its order.
local key = K .. 'ticket:' .. ARGV[1]
local found = redis.call('HMGET', key, 'user', 'issued', 'fresh', 'ends', 'opened')
local now = now_ms()
local function refused(why) return {why, '', '', 0, 0} end
if not found[1] then return refused('unknown') end
local fresh, ends, opened = tonumber(found[3]), tonumber(found[4]), tonumber(found[5] or 0)
if now >= ends then return refused('expired') end
if now >= fresh and (ARGV[2] ~= '1' or opened == 0) then return refused('used') end
opened = redis.call('HINCRBY', key, 'opened', 1)
if opened == 1 then redis.call('PEXPIREAT', key, string.format('%.0f', ends + tonumber(ARGV[3]))) end
redis.call('PUBLISH', ARGV[4], ARGV[5] .. ' ' .. opened)
return {'', found[1], found[2], opened, ends - now}
