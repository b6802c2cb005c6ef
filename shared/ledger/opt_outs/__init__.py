"""What is in force: the latest change of each phone, and what REDCap and Twilio have of it.

`statuses` has the latest changes and which of them have to reach REDCap, `write_intents` the writes that have begun.
"""
