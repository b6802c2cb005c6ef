"""The HTTP ingress: verifies, stores, publishes, answers. Never calls REDCap, Twilio's API or SMTP."""
