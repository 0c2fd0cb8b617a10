-- Gives a log a new epoch, if it is still the one that went back behind this place.
-- ARGV: a fresh epoch, log, epoch, number, at_ms. Returns whether it did.
local meta = load(ARGV[2], ARGV[1])
if meta.new or not went_back(meta, ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])) then return 0 end
meta.epoch = epoch_of(ARGV[2], ARGV[1])
meta.base = meta.number
save(meta)
return 1
