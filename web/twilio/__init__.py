"""The two routes that Twilio calls: signature, parsing, routing, views."""
