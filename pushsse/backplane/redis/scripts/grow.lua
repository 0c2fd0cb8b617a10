-- Lets an answer grow by some deltas, and publishes them.
-- In:  ARGV = MessagePack of {question, attempt, number of the last delta before these, number of the last of
--      these, whether this is all of the answer, how long it is kept (ms), channel, how many parts}, text,
--      status, the parts, then the messages.
-- Out: 1 if it has grown, now or before; 0 if a later attempt has the question, or it has ended; -1 if what it
--      grows from is not here.
-- One script: no delta is published whose text can't be read, and none of an attempt after a later one's.
local QUESTION, ATTEMPT, AFTER, SEQ, WHOLE, KEEP_MS, CHANNEL, PARTS = unpack(cmsgpack.unpack(ARGV[1]))
local TEXT, STATUS, MESSAGES = ARGV[2], ARGV[3], 4 + PARTS
local key = K .. 'answer:' .. QUESTION
local text, parts = key .. ':text', key .. ':parts'
local found = redis.call('HMGET', key, 'attempt', 'seq', 'bytes', 'ended')
local attempt, seq, bytes = tonumber(found[1] or 0), tonumber(found[2] or 0), tonumber(found[3] or 0)
if attempt > ATTEMPT or (attempt == ATTEMPT and found[4]) then return 0 end
if attempt == ATTEMPT then
  -- The same growth comes again where the reply was lost. Its messages were published.
  if seq >= SEQ then return 1 end
  if seq ~= AFTER and not WHOLE then return -1 end
elseif AFTER > 0 and not WHOLE then
  return -1
end
if attempt < ATTEMPT or WHOLE then
  bytes = 0
  redis.call('DEL', text, parts)
end
-- At a place, not appended: what an earlier script that failed half-way has written is written over.
if #TEXT > 0 then redis.call('SETRANGE', text, bytes, TEXT) end
for i = 4, MESSAGES - 1 do redis.call('RPUSH', parts, ARGV[i]) end
redis.call('HSET', key, 'attempt', ATTEMPT, 'seq', SEQ, 'bytes', bytes + #TEXT, 'status', STATUS)
redis.call('HDEL', key, 'ended')
redis.call('PEXPIRE', key, KEEP_MS)
redis.call('PEXPIRE', text, KEEP_MS)
redis.call('PEXPIRE', parts, KEEP_MS)
for i = MESSAGES, #ARGV do redis.call('PUBLISH', CHANNEL, ARGV[i]) end
return 1
