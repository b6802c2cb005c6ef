"""What concerns the whole installation: its processes, their configuration, Redis and the mail server.

Also what Twilio has shown about Messaging Services: their senders and keywords.
"""
