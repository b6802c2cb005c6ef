"""`optout setup`: what it changes at Twilio, planned first, then applied, and restored by --undo."""
