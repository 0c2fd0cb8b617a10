-- Appends calls to their logs, each whole or not at all, and lets every node hear them.
-- ARGV: keep_ms, remember_ms, remember_most, a fresh epoch, how channels begin, calls (MessagePack), entries and changes.
-- A call: log, known epoch, known number, keep_bytes, sources {partition, owner}, drafts
-- {where its entry is in ARGV, expires_ms, once, which source or 0, offset, timestamp_ms, user, where its change is}.
-- Returns for each call: taken (0: another owner), epoch, number, appended, fenced, repeated, expired.
local KEEP_MS, REMEMBER_MS, REMEMBER_MOST = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local FRESH, CHANNEL = ARGV[4], ARGV[5]
local NOW = now_ms()
local SEEN, ORDER, OWNER = K .. 'seen', K .. 'order', K .. 'owner'
local remembered = 0

local function is_foreign(sources)
  for _, source in ipairs(sources) do
    local owner = redis.call('HGET', OWNER, source[1])
    if owner and owner ~= source[2] then return true end
  end
  return false
end

local function is_seen(name)
  local at = redis.call('ZSCORE', SEEN, name)
  return at and tonumber(at) > NOW - REMEMBER_MS
end

-- Divides the drafts into those to append and those to skip; writes nothing.
local function sift(log, sources, drafts)
  local found = {items = {}, names = {}, fences = {}, fenced = 0, repeated = 0, expired = 0}
  local before = {}
  for i, source in ipairs(sources) do
    local fence = redis.call('HGET', K .. 'fence:' .. log, source[1])
    before[i] = fence and tonumber(string.match(fence, '^%d+')) or -1
  end
  for _, draft in ipairs(drafts) do
    local which, offset = draft[4], draft[5]
    local name = draft[3] ~= '' and (log .. '|' .. draft[3])
    -- Against the fence as it was before the call: one record may have several drafts in it.
    if which > 0 and offset <= before[which] then
      found.fenced = found.fenced + 1
    else
      local highest = found.fences[which]
      if which > 0 and (not highest or offset > highest[1]) then
        found.fences[which] = {offset, draft[6]}
      end
      if draft[2] > 0 and draft[2] <= NOW then
        found.expired = found.expired + 1
      elseif name and (found.names[name] or is_seen(name)) then
        found.repeated = found.repeated + 1
      else
        if name then found.names[name] = true end
        found.items[#found.items + 1] = draft
      end
    end
  end
  return found
end

local function add(meta, number, order, draft)
  local added = redis.pcall('XADD', meta.stream, id(number), 'o', order, 't', meta.at, 'b', ARGV[draft[1]])
  if type(added) == 'table' and added.err then
    if not string.find(added.err, 'equal or smaller', 1, true) then error(added.err) end
    -- The stream is further than its meta says: what it holds is of another life.
    meta.epoch = epoch_of(meta.log, FRESH)
    meta.base = meta.number
    clear(meta)
    redis.call('XADD', meta.stream, id(number), 'o', order, 't', meta.at, 'b', ARGV[draft[1]])
  end
  if draft[8] then
    redis.call('XADD', meta.changes, id(number), 'u', draft[7], 'c', ARGV[draft[8]])
  end
end

-- Gives up the oldest entries; a little more than needed, so that not every call has to.
local function trim(meta, keep_bytes, appended)
  local oldest_ms = NOW - KEEP_MS
  if meta.bytes <= keep_bytes and meta.oldest >= oldest_ms - math.min(KEEP_MS / 64, 60000) then return end
  local enough = keep_bytes - keep_bytes / 16
  local held
  for _, item in ipairs(redis.call('XRANGE', meta.stream, '-', '+', 'COUNT', 100 + 2 * appended)) do
    local at = tonumber(item[2][4])
    if meta.bytes <= enough and at >= oldest_ms then
      held = at
      break
    end
    meta.bytes = meta.bytes - #item[2][6]
    meta.trimmed = at
    meta.first = tonumber(string.match(item[1], '^%d+')) + 1
  end
  meta.oldest = held or meta.trimmed
  redis.call('XTRIM', meta.stream, 'MINID', id(meta.first))
  redis.call('XTRIM', meta.changes, 'MINID', id(meta.first))
end

local function append(meta, keep_bytes, items)
  -- The first write of all: where memory is short, it fails before anything is half done.
  local order = redis.call('INCRBY', ORDER, #items) - #items
  if meta.new then clear(meta) end
  meta.at = math.max(NOW, meta.at)
  if meta.bytes == 0 then meta.oldest = meta.at end
  local sizes, blobs = {}, {}
  for i, draft in ipairs(items) do
    add(meta, meta.number + 1, order + i, draft)
    meta.number = meta.number + 1
    blobs[i] = ARGV[draft[1]]
    sizes[i] = #blobs[i]
    meta.bytes = meta.bytes + sizes[i]
  end
  local first = meta.number - #items + 1
  trim(meta, keep_bytes, #items)
  redis.call('PEXPIRE', meta.stream, KEEP_MS)
  redis.call('PEXPIRE', meta.changes, KEEP_MS)
  local header = string.format('1 %s %.0f %.0f %.0f ', meta.epoch, first, order + 1, meta.at)
  return header .. table.concat(sizes, ' ') .. '\n' .. table.concat(blobs)
end

local function note(log, sources, found)
  for which, fence in pairs(found.fences) do
    if which > 0 then
      local text = string.format('%.0f:%.0f', fence[1], fence[2])
      redis.call('HSET', K .. 'fence:' .. log, sources[which][1], text)
    end
  end
  for name in pairs(found.names) do
    redis.call('ZADD', SEEN, NOW, name)
    remembered = remembered + 1
  end
end

local function forget()
  local old = redis.call('ZCOUNT', SEEN, '-inf', NOW - REMEMBER_MS)
  local many = redis.call('ZCARD', SEEN) - REMEMBER_MOST
  local most = math.min(math.max(old, many), 100 + 2 * remembered)
  if most > 0 then redis.call('ZREMRANGEBYRANK', SEEN, 0, most - 1) end
  redis.call('PEXPIRE', SEEN, REMEMBER_MS)
end

local replies = {}
for _, call in ipairs(cmsgpack.unpack(ARGV[6])) do
  local log, sources = call[1], call[5]
  if is_foreign(sources) then
    replies[#replies + 1] = {0, '', 0, 0, 0, 0, 0}
  else
    local meta = load(log, FRESH)
    local renewed = call[2] == meta.epoch and meta.number < call[3]
    if renewed then
      meta.epoch = epoch_of(log, FRESH)
      meta.base = meta.number
    end
    local found = sift(log, sources, call[6])
    local message
    if #found.items > 0 then message = append(meta, call[4], found.items) end
    if message or meta.new or renewed then save(meta) end
    note(log, sources, found)
    if message then redis.call('PUBLISH', CHANNEL .. log, message) end
    replies[#replies + 1] = {
      1, meta.epoch, meta.number, #found.items, found.fenced, found.repeated, found.expired
    }
  end
end
if remembered > 0 then forget() end
return replies
