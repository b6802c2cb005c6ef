"""Largest requests that the webhooks accept."""

# An inbound message has at most 1,600 characters and ten media links; an Event Streams batch holds one event
# today, but is documented as an array.
INBOUND_LIMIT_BYTES = 64 * 1024
EVENTS_LIMIT_BYTES = 1024 * 1024
# Twilio sends about 40 parameters, and 20 more with ten media links. Parsing and sorting more of them
# for a forged request would hold up the genuine ones.
MAX_PARAMETERS = 128
# A body hash and the few parameters that a webhook address may have.
QUERY_LIMIT_BYTES = 2048
