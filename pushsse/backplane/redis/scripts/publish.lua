-- Appends drafts to their logs, each append whole or not at all, and publishes them to every node.
-- In:  ARGV = keep_ms, remember_ms, remember_most, a fresh word, how channels begin, appends (MessagePack),
--      then blobs, which the appends name by their place in ARGV: entries, names, changes.
--      An append: {log, known epoch, known number, keep_bytes, sources, drafts}.
--      A source: {partition, owner}.
--      A draft: {entry's place, expires_ms, names' place or 0, which source or 0, offset, timestamp_ms, first
--      and last byte of the recipients in the entry}; with a change of switches also {user, change's place}.
--      Names have NAME_BYTES each, one for each recipient, in order.
-- Out: for each append {accepted (1; 0: another owner, -1: no owner), epoch, number, appended, fenced, repeated, expired}.
-- Message on a log's channel: '1 EPOCH FIRST ORDER AT SIZE…\n', then the entries of one append.
--
-- The order of what follows matters. For each append: owners, fences and names are read (guarantee 1), entries
-- are added, the log's state is saved, fences and names are written, and last the message is published.
local KEEP_MS, REMEMBER_MS, REMEMBER_MOST = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local FRESH, CHANNEL = ARGV[4], ARGV[5]
local NOW = now_ms()
-- 'seen' is another key, of releases before this one, which remembered by log and not by recipient.
local SEEN, ORDER, OWNER = K .. 'had', K .. 'order', K .. 'owner'
local NAME_BYTES = 12
-- Arguments of one command: Lua's stack holds 8,000.
local AT_ONCE = 2000
local remembered = 0

-- Guarantee 1: a node that has lost its partition must append nothing more. The new owner has compared the
-- fences with Kafka already. Where the claim is gone, since Redis was emptied, it may be that node, too.
local function refusal(sources)
  local found
  for _, source in ipairs(sources) do
    local owner = redis.call('HGET', OWNER, source[1])
    if not owner then
      found = found or -1
    elseif owner ~= source[2] then
      found = 0
    end
  end
  return found
end

-- Which of these names nobody has had yet, how many they are, and how many names there are. The names that are
-- new join `names`, those of this append: the next draft with the same name is a repeat, too.
local function unseen(packed, names)
  local all, new, count = {}, {}, 0
  for start = 1, #packed, NAME_BYTES do
    all[#all + 1] = string.sub(packed, start, start + NAME_BYTES - 1)
  end
  for start = 1, #all, AT_ONCE do
    local stop = math.min(#all, start + AT_ONCE - 1)
    for i, at in ipairs(redis.call('ZMSCORE', SEEN, unpack(all, start, stop))) do
      local name = all[start + i - 1]
      if not (at and tonumber(at) > NOW - REMEMBER_MS) and not names[name] then
        names[name] = true
        names[#names + 1] = name
        new[start + i - 1] = true
        count = count + 1
      end
    end
  end
  return new, count, #all
end

-- An entry without the recipients who have had it.
local function without_repeats(draft, new)
  local entry, from, to = ARGV[draft[1]], draft[7], draft[8]
  local users = {}
  for i, user in ipairs(cmsgpack.unpack(string.sub(entry, from, to))) do
    if new[i] then users[#users + 1] = user end
  end
  return string.sub(entry, 1, from - 1) .. cmsgpack.pack(users) .. string.sub(entry, to + 1)
end

-- A draft for those who have not had its names: as it is, without the others, or nil if that is nobody.
local function unrepeated(draft, found)
  draft.entry = ARGV[draft[1]]
  if draft[3] == 0 then return draft end
  local new, count, all = unseen(ARGV[draft[3]], found.names)
  found.repeated = found.repeated + all - count
  if count == 0 then return nil end
  if count < all then draft.entry = without_repeats(draft, new) end
  return draft
end

-- Divides the drafts into those to append and those to skip; writes nothing.
local function sift(log, sources, drafts)
  local found = {drafts = {}, names = {}, fences = {}, fenced = 0, repeated = 0, expired = 0}
  local before = {}
  for i, source in ipairs(sources) do
    local fence = redis.call('HGET', K .. 'fence:' .. log, source[1])
    before[i] = fence and tonumber(string.match(fence, '^%d+')) or -1
  end
  for _, draft in ipairs(drafts) do
    local which, offset = draft[4], draft[5]
    -- Guarantee 1: against the fence as it was before this append, since one record may have several drafts in
    -- it. That is why all of them must be in one append: a second would find its offset fenced.
    if which > 0 and offset <= before[which] then
      found.fenced = found.fenced + 1
    else
      -- Guarantee 1: an expired or repeated draft moves the fence, too, so that the fence is never behind the
      -- offset that is committed in Kafka.
      local highest = found.fences[which]
      if which > 0 and (not highest or offset > highest[1]) then
        found.fences[which] = {offset, draft[6]}
      end
      -- Before the names: an expired draft must not use up a name that a later one with the same id needs.
      if draft[2] > 0 and draft[2] <= NOW then
        found.expired = found.expired + 1
      else
        found.drafts[#found.drafts + 1] = unrepeated(draft, found)
      end
    end
  end
  return found
end

local function add(meta, number, order, draft)
  local added = redis.pcall('XADD', meta.stream, id(number), 'o', order, 't', meta.at, 'b', draft.entry)
  if type(added) == 'table' and added.err then
    if not string.find(added.err, 'equal or smaller', 1, true) then error(added.err) end
    -- Guarantee 2: the stream is further than the state says: an earlier script failed half-way, or the state
    -- is an older one. Its entries must not be taken for this epoch's, so both begin again.
    meta.epoch = epoch_of(meta.log, FRESH)
    meta.base = meta.number
    clear(meta)
    redis.call('XADD', meta.stream, id(number), 'o', order, 't', meta.at, 'b', draft.entry)
  end
  -- Guarantee 3: under its entry's number, so that a replay knows which switches held at each entry.
  if draft[10] then
    redis.call('XADD', meta.changes, id(number), 'u', draft[9], 'c', ARGV[draft[10]])
  end
end

-- Trims the oldest entries: a little more than needed, so that not every append has to.
local function trim(meta, keep_bytes, appended)
  local oldest_ms = NOW - KEEP_MS
  if meta.bytes <= keep_bytes and meta.oldest >= oldest_ms - math.min(KEEP_MS / 64, 60000) then return end
  local enough = keep_bytes - keep_bytes / 16
  local oldest
  for _, item in ipairs(redis.call('XRANGE', meta.stream, '-', '+', 'COUNT', 100 + 2 * appended)) do
    local at = tonumber(item[2][4])
    if meta.bytes <= enough and at >= oldest_ms then
      oldest = at
      break
    end
    meta.bytes = meta.bytes - #item[2][6]
    meta.trimmed = at
    meta.first = tonumber(string.match(item[1], '^%d+')) + 1
  end
  meta.oldest = oldest or meta.trimmed
  redis.call('XTRIM', meta.stream, 'MINID', id(meta.first))
  -- At the same number: a change whose entry is gone says nothing about those that are left.
  redis.call('XTRIM', meta.changes, 'MINID', id(meta.first))
end

-- Adds the entries, and returns the message that publishes them.
local function append(meta, keep_bytes, drafts)
  -- Guarantee 1: the first write of all. Where Redis has no memory left it refuses this one, and nothing is
  -- half done. Guarantee 2: one counter for all logs; broadcasts and personal events are merged by it.
  local order = redis.call('INCRBY', ORDER, #drafts) - #drafts
  if meta.new then clear(meta) end
  -- Never before the entry before it, even if the clock went back: since.lua searches by time.
  meta.at = math.max(NOW, meta.at)
  if meta.bytes == 0 then meta.oldest = meta.at end
  local sizes, blobs = {}, {}
  for i, draft in ipairs(drafts) do
    add(meta, meta.number + 1, order + i, draft)
    meta.number = meta.number + 1
    blobs[i] = draft.entry
    sizes[i] = #blobs[i]
    meta.bytes = meta.bytes + sizes[i]
  end
  local first = meta.number - #drafts + 1
  trim(meta, keep_bytes, #drafts)
  redis.call('PEXPIRE', meta.stream, KEEP_MS)
  redis.call('PEXPIRE', meta.changes, KEEP_MS)
  local header = string.format('1 %s %.0f %.0f %.0f ', meta.epoch, first, order + 1, meta.at)
  return header .. table.concat(sizes, ' ') .. '\n' .. table.concat(blobs)
end

-- Guarantee 1: after the entries. Were a fence or a name written first and the entry refused, a retry would
-- skip the draft, and its people would never get it.
local function remember(log, sources, found)
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

-- Forgets the names that are too old or too many, about twice as many as were added at most.
local function forget()
  local old = redis.call('ZCOUNT', SEEN, '-inf', NOW - REMEMBER_MS)
  local excess = redis.call('ZCARD', SEEN) - REMEMBER_MOST
  local most = math.min(math.max(old, excess), 100 + 2 * remembered)
  if most > 0 then redis.call('ZREMRANGEBYRANK', SEEN, 0, most - 1) end
  redis.call('PEXPIRE', SEEN, REMEMBER_MS)
end

local replies = {}
for _, call in ipairs(cmsgpack.unpack(ARGV[6])) do
  local log, sources = call[1], call[5]
  local refused = refusal(sources)
  if refused then
    replies[#replies + 1] = {refused, '', 0, 0, 0, 0, 0}
  else
    local meta = load(log, FRESH)
    -- Guarantee 2: the publisher knows of a later entry in this epoch, so Redis has an older state. In the old
    -- epoch the numbers in between would be given a second time.
    local renewed = call[2] == meta.epoch and meta.number < call[3]
    if renewed then
      meta.epoch = epoch_of(log, FRESH)
      meta.base = meta.number
    end
    local found = sift(log, sources, call[6])
    local message
    if #found.drafts > 0 then message = append(meta, call[4], found.drafts) end
    if message or meta.new or renewed then save(meta) end
    remember(log, sources, found)
    -- Guarantee 2: last. Whoever hears a number must find it in the log, and its state, when he reads.
    if message then redis.call('PUBLISH', CHANNEL .. log, message) end
    replies[#replies + 1] = {
      1, meta.epoch, meta.number, #found.drafts, found.fenced, found.repeated, found.expired
    }
  end
end
if remembered > 0 then forget() end
return replies
