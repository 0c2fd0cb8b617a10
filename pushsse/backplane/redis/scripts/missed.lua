-- Finds events of whose people somebody was away.
-- In:  ARGV = length of a lease and the shortest absence in ms, up to which time (ms) entries are looked at, most
--      entries and people, most bytes, a fresh word, the lowest and the highest version of entries that can be
--      read, wants (MessagePack). A want: {log, epoch or '', number}. It is answered with what comes after its
--      number; where the log has another epoch, with what comes after that epoch's base.
-- Out: {more: 1 or 0, for each want {epoch, number: what comes after it was not looked at}, what was found}.
--      What was found, in the order of each log: {which want, entry, people}: those who had no stream from its
--      time on until the shortest absence was over. `Stay.was_there` says the same.
-- People are looked up here, since of most events nobody was away, and an entry that isn't sent costs a node nothing.
local LEASE, AWAY, BEFORE = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local LIMIT, MOST_BYTES, FRESH = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local LOWEST, HIGHEST = tonumber(ARGV[7]), tonumber(ARGV[8])
-- Arguments of one command: Lua's stack holds 8,000.
local AT_ONCE = 2000

-- Where the text or the bytes end that begin at a place. cmsgpack knows no bytes, and would copy the text.
local function skip(entry, at)
  local kind, a, b, c, d = string.byte(entry, at, at + 4)
  if kind >= 0xa0 and kind <= 0xbf then return at + 1 + kind - 0xa0 end
  if kind == 0xc4 or kind == 0xd9 then return at + 2 + a end
  if kind == 0xc5 or kind == 0xda then return at + 3 + a * 256 + b end
  if kind == 0xc6 or kind == 0xdb then return at + 5 + ((a * 256 + b) * 256 + c) * 256 + d end
  error('neither text nor bytes')
end

-- The recipients of an entry, if it is an event that can be switched off: the third and fourth item of Publication.
local function recipients(entry)
  -- After the version and the head of the array.
  local at = string.byte(entry, 2) == 0xdc and 5 or 3
  at = skip(entry, skip(entry, at))
  -- It counts from 0.
  local after, users = cmsgpack.unpack_one(entry, at - 1)
  local _, switchable = cmsgpack.unpack_one(entry, after)
  return switchable and users
end

local function people_of(entry)
  local version = string.byte(entry, 1) or -1
  if version < LOWEST or version > HIGHEST then return {} end
  -- One that can't be read is for nobody, as for `codec.Decoder`.
  local is_read, users = pcall(recipients, entry)
  return is_read and type(users) == 'table' and users or {}
end

-- Where people have streams and had, by person; what a dead place says holds as of a lease before its end.
local function stays_of(people)
  local now, found = now_ms(), {}
  for _, user in ipairs(people) do found[user] = {} end
  for _, place in ipairs(places()) do
    local key, ends = place[2], tonumber(place[3])
    local last = ends > now and now or ends - LEASE
    for start = 1, #people, AT_ONCE do
      local stop = math.min(#people, start + AT_ONCE - 1)
      for i, told in ipairs(redis.call('HMGET', key, unpack(people, start, stop))) do
        if told then
          local streams, since, left = string.match(told, '(%d+) (%d+) (%d+)')
          local stays = found[people[start + i - 1]]
          stays[#stays + 1] = {tonumber(streams), tonumber(since), tonumber(left), last}
        end
      end
    end
  end
  return found
end

local function was_there(stays, at)
  for _, stay in ipairs(stays) do
    local streams, since, left, last = unpack(stay)
    local came_in_time = since <= at + AWAY
    if streams > 0 and came_in_time and last >= at then return true end
    if left >= at and (streams > 0 or came_in_time) then return true end
  end
  return false
end

local seen, people, known = {}, {}, {}
local replies, more, left = {}, 0, LIMIT

-- Looks at one log's entries after a number, as many as its share allows; returns the last that was looked at.
local function look(which, meta, from, share)
  local count = math.max(1, math.min(share, math.floor(MOST_BYTES / average(meta))))
  local number = from
  local items = redis.call('XRANGE', meta.stream, id(from + 1), '+', 'COUNT', count)
  for _, item in ipairs(items) do
    if tonumber(item[2][4]) > BEFORE then return number end
    if share <= 0 then
      more = 1
      return number
    end
    number = tonumber(string.match(item[1], '^%d+'))
    local users = people_of(item[2][6])
    share, left = share - 1 - #users, left - 1 - #users
    if #users > 0 then seen[#seen + 1] = {which, item, users} end
    for _, user in ipairs(users) do
      if not known[user] then
        known[user] = true
        people[#people + 1] = user
      end
    end
  end
  -- Somebody has deleted what the log should hold beyond them: there is nothing more to look at.
  if #items < count then return meta.number end
  if number < meta.number then more = 1 end
  return number
end

local wants = cmsgpack.unpack(ARGV[9])
for i, want in ipairs(wants) do
  local meta = load_or_begin(want[1], FRESH)
  local from = read_from(meta, want[2], want[3])
  if from < meta.number then
    -- What a log leaves of its share is for those after it. Each gets at least one entry, so that none waits for ever.
    from = look(i, meta, from, math.max(1, math.floor(left / (#wants - i + 1))))
  end
  replies[i] = {meta.epoch, math.min(from, meta.number)}
end

local stays, found = stays_of(people), {}
for _, each in ipairs(seen) do
  local at, away = tonumber(each[2][2][4]), {}
  for _, user in ipairs(each[3]) do
    if not was_there(stays[user], at) then away[#away + 1] = user end
  end
  if #away > 0 then found[#found + 1] = {each[1], each[2], away} end
end
return {more, replies, found}
