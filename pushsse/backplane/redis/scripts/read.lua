-- Reads several logs as they are at one moment (guarantee 2: only so can they be merged by order).
-- In:  ARGV = a fresh word, most entries, most bytes, wants (MessagePack).
--      A want: {log, epoch or '', number, time in ms, tail}. With tail > 0 it is answered with the newest
--      entries, at most so many. Any other is answered with what comes after its number; where the log has
--      another epoch, with what comes after that epoch's base.
-- Out: for each want {epoch, number, first, base, trimmed, at, from, went back: 1 or 0, entries after `from`}.
-- A log that does not exist begins here, so that a listener has an epoch to compare with.
local FRESH, LIMIT, MOST_BYTES = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

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
  local meta = load_or_begin(want[1], FRESH)
  -- Guarantee 2: `from` says what is missing. The caller tells a gap where it is beyond the wanted number.
  local from = read_from(meta, want[2], want[3])
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

-- The log with the fewest entries first: what it leaves of its share is for the others. Each gets at least one
-- entry, so that every log comes nearer to its end with every read.
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
