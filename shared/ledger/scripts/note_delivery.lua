-- Stores which recipients of an event's e-mail are done, unless the event has expired.
-- KEYS: 1 event
-- ARGV: 1 notice and hashes of accepted recipients, 2 notice and hashes of rejected ones
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'mail_accepted', ARGV[1], 'mail_rejected', ARGV[2])
return 1
