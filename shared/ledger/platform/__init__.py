"""What concerns the whole installation: its processes, their configuration, Redis, the mail server, and all counters.

Also what the operator is notified of (`open_conditions`), and what Twilio has shown about Messaging Services.
"""
