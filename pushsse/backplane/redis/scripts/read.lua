-- What several logs hold, at one moment.
-- ARGV: a fresh epoch, most entries, most bytes, wants (MessagePack): {log, epoch or '', number, at_ms, tail}.
-- A want with tail > 0 is answered with the newest entries, at most so many, and so many bytes. Any other
-- with what comes after its number; of another epoch: with what comes after that epoch's base.
-- Returns for each: epoch, number, first, base, trimmed, at, from, whether it went back, entries.
local FRESH, LIMIT, MOST_BYTES = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local function average(meta)
  return math.max(1, meta.bytes / math.max(1, meta.number - meta.first + 1))
end

local function tail(meta, most)
  most = math.min(most, math.max(1, math.floor(2 * MOST_BYTES / average(meta))))
  local found, room = {}, MOST_BYTES
  for _, item in ipairs(redis.call('XREVRANGE', meta.stream, '+', '-', 'COUNT', most)) do
    room = room - #item[2][6]
    if room < 0 then break end
    found[#found + 1] = item
  end
  local entries = {}
  for i = #found, 1, -1 do entries[#entries + 1] = found[i] end
  return entries
end

local replies, behind = {}, {}
for i, want in ipairs(cmsgpack.unpack(ARGV[4])) do
  local meta = load(want[1], FRESH)
  if meta.new then
    clear(meta)
    save(meta)
  end
  local from = want[3]
  if want[2] ~= '' and want[2] ~= meta.epoch then from = meta.base end
  from = math.max(from, meta.first - 1)
  local back = went_back(meta, want[2], want[3], want[4]) and 1 or 0
  local entries = {}
  if want[5] > 0 then
    entries = tail(meta, want[5])
  elseif from < meta.number then
    behind[#behind + 1] = {i, meta, from, meta.number - from}
  end
  replies[i] = {
    meta.epoch, meta.number, meta.first, meta.base, meta.trimmed, meta.at, from, back, entries
  }
end

-- The shortest first: what they leave of their share is for the others.
table.sort(behind, function(a, b) return a[4] < b[4] end)
local left = LIMIT
for i, want in ipairs(behind) do
  local others = #behind - i + 1
  local share = math.max(1, math.floor(left / others))
  share = math.min(share, math.max(1, math.floor(MOST_BYTES / #behind / average(want[2]))))
  local entries = redis.call('XRANGE', want[2].stream, id(want[3] + 1), '+', 'COUNT', share)
  left = left - #entries
  replies[want[1]][9] = entries
end
return replies
