"""The e-mails that are due: about events (`mail_outbox`) and reconciliations."""
