-- Appends calls to their logs, each whole or not at all, and lets every node hear them.
-- ARGV: keep_ms, remember_ms, remember_most, a fresh epoch, how channels begin, calls (MessagePack), and what
-- these name by its place in ARGV: entries, names, changes.
-- A call: log, known epoch, known number, keep_bytes, sources {partition, owner}, drafts
-- {where its entry is, expires_ms, where its names are or 0, which source or 0, offset, timestamp_ms, where in its
-- entry its recipients begin, and end, user, where its change is}.
-- Names have NAME_BYTES each, one for each recipient, in order.
-- Returns for each call: taken (0: another owner), epoch, number, appended, fenced, repeated, expired.
local KEEP_MS, REMEMBER_MS, REMEMBER_MOST = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local FRESH, CHANNEL = ARGV[4], ARGV[5]
local NOW = now_ms()
-- 'seen' is what releases before this one remember in: by log and not by recipient.
local SEEN, ORDER, OWNER = K .. 'had', K .. 'order', K .. 'owner'
local NAME_BYTES = 12
-- Of a command's arguments: Lua's stack holds 8,000.
local AT_ONCE = 2000
local remembered = 0

local function is_foreign(sources)
  for _, source in ipairs(sources) do
    local owner = redis.call('HGET', OWNER, source[1])
    if owner and owner ~= source[2] then return true end
  end
  return false
end

-- Which of some names are new, and that. `taken` are those of this call, which aren't remembered yet.
local function news(packed, taken)
  local names, found, many = {}, {}, 0
  for start = 1, #packed, NAME_BYTES do
    names[#names + 1] = string.sub(packed, start, start + NAME_BYTES - 1)
  end
  for start = 1, #names, AT_ONCE do
    local stop = math.min(#names, start + AT_ONCE - 1)
    for i, at in ipairs(redis.call('ZMSCORE', SEEN, unpack(names, start, stop))) do
      local name = names[start + i - 1]
      if not (at and tonumber(at) > NOW - REMEMBER_MS) and not taken[name] then
        taken[name] = true
        taken[#taken + 1] = name
        found[start + i - 1] = true
        many = many + 1
      end
    end
  end
  return found, many, #names
end

-- An entry without the recipients who have had it.
local function without_repeats(draft, found)
  local entry, from, to = ARGV[draft[1]], draft[7], draft[8]
  local kept = {}
  for i, user in ipairs(cmsgpack.unpack(string.sub(entry, from, to))) do
    if found[i] then kept[#kept + 1] = user end
  end
  return string.sub(entry, 1, from - 1) .. cmsgpack.pack(kept) .. string.sub(entry, to + 1)
end

-- A draft whose names are new for some: as it is, without the others, or nil for nobody.
local function unrepeated(draft, found)
  draft.entry = ARGV[draft[1]]
  if draft[3] == 0 then return draft end
  local new, many, all = news(ARGV[draft[3]], found.names)
  found.repeated = found.repeated + all - many
  if many == 0 then return nil end
  if many < all then draft.entry = without_repeats(draft, new) end
  return draft
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
      else
        found.items[#found.items + 1] = unrepeated(draft, found)
      end
    end
  end
  return found
end

local function add(meta, number, order, draft)
  local added = redis.pcall('XADD', meta.stream, id(number), 'o', order, 't', meta.at, 'b', draft.entry)
  if type(added) == 'table' and added.err then
    if not string.find(added.err, 'equal or smaller', 1, true) then error(added.err) end
    -- The stream is further than its meta says: what it holds is of another life.
    meta.epoch = epoch_of(meta.log, FRESH)
    meta.base = meta.number
    clear(meta)
    redis.call('XADD', meta.stream, id(number), 'o', order, 't', meta.at, 'b', draft.entry)
  end
  if draft[10] then
    redis.call('XADD', meta.changes, id(number), 'u', draft[9], 'c', ARGV[draft[10]])
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
    blobs[i] = draft.entry
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
  local names = found.names
  for start = 1, #names, AT_ONCE do
    local added = {}
    for i = start, math.min(#names, start + AT_ONCE - 1) do
      added[#added + 1] = NOW
      added[#added + 1] = names[i]
    end
    redis.call('ZADD', SEEN, unpack(added))
  end
  remembered = remembered + #names
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
