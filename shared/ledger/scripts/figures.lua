-- Counts what is waiting, of many projects in one round trip.
-- Returns per project: its name, events that have not ended, ms of the oldest, phones to be written, e-mails that are
--   due, changes that wait for a digest, events that wait for a decision, ms of the oldest, phones in the index, blocks
--   at Twilio that wait and that failed, and of the reconciliation: ms of the last success and failure, share of the log,
--   refused and delivered texts, and texts delivered although Twilio was asked to block.
local projects, attempts = unpack(KEYS)
local prefix = arguments(1)  -- of all keys
-- Then the configured projects.

local names, seen = {}, {}
for name in rest(1) do names[#names + 1] = name end
for _, name in ipairs(redis.call('HKEYS', projects)) do names[#names + 1] = name end
local function key(kind, name) return prefix .. ':' .. kind .. ':' .. name end
local function count(kind, name) return redis.call('ZCARD', key(kind, name)) end
local function oldest(kind, name) return redis.call('ZRANGE', key(kind, name), 0, 0, 'WITHSCORES')[2] or '' end
local found = {}
for _, name in ipairs(names) do
  if not seen[name] then
    seen[name] = true
    local gathered = count('gathered', name)
    -- E-mails in a digest are due from sweep's first attempt on.
    local waiting = redis.call('HEXISTS', attempts, work('digest', name)) == 1 and 0 or gathered
    local last = redis.call('HMGET', key('reconciled', name), 'success_ms', 'failure_ms', 'log_covered', 'refused',
      'delivered', 'block_faults')
    found[#found + 1] = {
      name, count('unfinished', name), oldest('unfinished', name), count('pending', name),
      count('mailing', name) - waiting, gathered, count('reviews', name), oldest('reviews', name),
      redis.call('HLEN', key('index', name) .. ':phones'), count('blocks-waiting', name), count('blocks-failed', name),
      last[1] or '', last[2] or '', last[3] or '1', last[4] or '0', last[5] or '0', last[6] or '0',
    }
  end
end
return found
