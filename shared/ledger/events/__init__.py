"""The events: each STOP and START that was received, how far it has come, and how it ended.

`event_recorder` records them, `event_store` reads them, `event_progress` takes them to their end.
"""
