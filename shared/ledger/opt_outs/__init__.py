"""What is in force: the latest change of each phone (`statuses`), and how far REDCap and Twilio have it.

`write_intents` and `written_values` are about REDCap's records, `blocks` about Twilio.
"""
