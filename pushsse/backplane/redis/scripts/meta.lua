-- Put in front of every script: what is known about a log, read and written.
-- KEYS[1] is how the names of all keys begin. Numbers go into ids by %.0f: `..` rounds to 14 digits.
local K = KEYS[1]
local FIELDS = {'epoch', 'number', 'base', 'bytes', 'first', 'oldest', 'at', 'trimmed'}

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function id(number)
  return string.format('%.0f-0', number)
end

-- A fresh word with the log's name, so that no place in one log can be taken for a place in another.
local function epoch_of(log, fresh)
  return fresh .. log
end

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
    -- A quiet log's stream goes away as a whole.
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

-- Whether the log is no longer the one in which somebody stood at this place: its number is lower, or
-- another entry has it. Redis came back with an older state, perhaps with newer entries on top.
local function went_back(meta, epoch, number, at)
  if meta.epoch ~= epoch then return false end
  if meta.number < number then return true end
  if at == 0 or number < meta.first then return false end
  local entry = redis.call('XRANGE', meta.stream, id(number), id(number))[1]
  return entry == nil or tonumber(entry[2][4]) ~= at
end
