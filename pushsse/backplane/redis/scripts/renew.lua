-- Gives a log a new epoch, if it has gone back behind a place at which a listener stood.
-- In:  ARGV = a fresh word, log, epoch, number and time in ms of that place.
-- Out: 1 if it did. 0 if the log is not behind the place: perhaps another node has given it the new epoch.
-- Guarantee 2: checked again in here. Two nodes that find out together must end up with one new epoch; with two,
-- the streams of one of them would be told a second gap.
local meta = load(ARGV[2], ARGV[1])
if meta.new or not went_back(meta, ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])) then return 0 end
meta.epoch = epoch_of(ARGV[2], ARGV[1])
meta.base = meta.number
save(meta)
return 1
