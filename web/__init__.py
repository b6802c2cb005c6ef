"""The HTTP ingress: verify, store, publish, answer. Never calls REDCap, Twilio's API or SMTP."""
