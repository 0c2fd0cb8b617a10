-- In front of every script: reads and writes the state of a log.
-- KEYS[1] is how the names of all keys begin (K); a script touches no others. After K:
--   meta:LOG     hash    the state of a log; FIELDS below
--   log:LOG      stream  entries; id NUMBER-0, fields o (order), t (time in ms), b (the entry)
--   changes:LOG  stream  changes of switches; id as their entry's, fields u (user), c (the change)
--   fence:LOG    hash    TOPIC/PARTITION -> OFFSET:TIMESTAMP_MS, the highest offset appended
--   order        string  the counter that every entry of every log takes its order from
--   owner        hash    TOPIC/PARTITION -> who has claimed it
--   had          zset    digests of drafts' names -> when they were appended, in ms
--   starts       hash    TOPIC -> where reading of it began, JSON
--   identity     string  the word by which this Redis and prefix are known
--   ticket:NAME  hash    user, issued (s), fresh and ends (until when, ms), opened (how often)
--   used:NAME    string  how often something was used in its window of time, which ends with the key
--   spent:NAME   string  nothing: it lives until an allowance that was taken from is whole again
--   answer:ID    hash    an answer so far: attempt, seq (its last delta), bytes (of its text), status; or ended.
--                        With :text (string) and :parts (list)
--   present      set     the places that have told who is there
--   presence:PLACE  hash  person -> "STREAMS SINCE LEFT" (ms); with an empty name, when the place's lease ends, with a
--                        space, how often its node has told of it
--   duty:NAME    string  the node that does something for all, as long as its lease; :marks (hash) how far that
--                        has got, LOG -> "EPOCH NUMBER"
--   reports      hash    node -> until when (ms), a space, what it says about itself; expires with the last of them
--   alive        string  written by the canary, to see whether Redis takes writes
-- Numbers go into ids and texts by %.0f: `..` would round them to 14 digits.
-- Redis does not undo a script that fails half-way. So each script writes what may be refused first, and what
-- makes the rest visible last.
local K = KEYS[1]
-- base: the number before the first of this epoch. first: the oldest number held. oldest: its time. at: the
-- time of the newest entry. trimmed: the time of the newest entry that was trimmed away.
local FIELDS = {'epoch', 'number', 'base', 'bytes', 'first', 'oldest', 'at', 'trimmed'}

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function id(number)
  return string.format('%.0f-0', number)
end

-- Guarantee 2: with the log's name, so that no position in one log is taken for one in another.
local function epoch_of(log, fresh)
  return fresh .. log
end

-- The state of a log. One that does not exist is `new`, with an epoch that is not saved yet.
local function load(log, fresh)
  local found = redis.call('HMGET', K .. 'meta:' .. log, unpack(FIELDS))
  local meta = {log = log, stream = K .. 'log:' .. log, changes = K .. 'changes:' .. log}
  for i = 2, #FIELDS do
    meta[FIELDS[i]] = tonumber(found[i] or 0)
  end
  meta.epoch = found[1]
  if not meta.epoch then
    meta.new = true
    meta.epoch = epoch_of(log, fresh)
    meta.first = 1
  elseif redis.call('EXISTS', meta.stream) == 0 then
    -- The stream of a quiet log expires as a whole, and its numbers go on. They must: numbers that were given
    -- once may not be given again in this epoch (guarantee 2).
    if meta.first <= meta.number then meta.trimmed = meta.at end
    meta.first = meta.number + 1
    meta.bytes = 0
    meta.oldest = 0
  end
  return meta
end

local function clear(meta)
  redis.call('DEL', meta.stream, meta.changes)
  meta.first = meta.number + 1
  meta.bytes = 0
  meta.oldest = 0
end

local function save(meta)
  local values = {}
  for _, field in ipairs(FIELDS) do
    values[#values + 1] = field
    values[#values + 1] = meta[field]
  end
  redis.call('HSET', K .. 'meta:' .. meta.log, unpack(values))
end

-- Whether the log no longer has the place (epoch, number, time) at which a listener stood: its number is
-- lower, or another entry has that number. Redis came back with an older state, perhaps with newer entries on
-- top (guarantee 2).
local function went_back(meta, epoch, number, at)
  if meta.epoch ~= epoch then return false end
  if meta.number < number then return true end
  if at == 0 or number < meta.first then return false end
  local entry = redis.call('XRANGE', meta.stream, id(number), id(number))[1]
  return entry == nil or tonumber(entry[2][4]) ~= at
end

-- The state of a log that begins here where it does not exist, so that whoever reads has an epoch to compare with.
local function load_or_begin(log, fresh)
  local meta = load(log, fresh)
  if meta.new then
    clear(meta)
    save(meta)
  end
  return meta
end

-- After which number somebody reads on who has a log up to a number of an epoch ('': of any): where the log has another
-- epoch, after that one's base.
local function read_from(meta, epoch, number)
  if epoch ~= '' and epoch ~= meta.epoch then number = meta.base end
  return math.max(number, meta.first - 1)
end

-- Bytes of an entry of a log.
local function average(meta)
  return math.max(1, meta.bytes / math.max(1, meta.number - meta.first + 1))
end

-- The places that have told who is there: name, key, when the lease ends (ms). Those whose key is gone are forgotten.
local function places()
  local found = {}
  for _, place in ipairs(redis.call('SMEMBERS', K .. 'present')) do
    local key = K .. 'presence:' .. place
    local ends = redis.call('HGET', key, '')
    if ends then
      found[#found + 1] = {place, key, ends}
    else
      redis.call('SREM', K .. 'present', place)
    end
  end
  return found
end
