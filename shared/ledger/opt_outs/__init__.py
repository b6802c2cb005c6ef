"""What is in force: the latest change of each phone (`statuses`), and how far REDCap and Twilio have it.

`write_intents`, `written_values` and `indexed_phones` are about REDCap's records, `blocks` about Twilio.
"""
