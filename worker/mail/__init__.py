"""E-mail: SMTP, texts and digests."""
