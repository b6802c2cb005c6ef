-- Stores which recipients of an event's e-mail are done, unless the event has expired.
local event = unpack(KEYS)
local accepted, rejected = arguments(2)  -- each the notice, then hashes of recipients

if redis.call('EXISTS', event) == 0 then return 0 end
redis.call('HSET', event, 'mail_accepted', accepted, 'mail_rejected', rejected)
return 1
