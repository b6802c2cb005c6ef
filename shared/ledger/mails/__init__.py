"""The e-mails that are due: about events (`mail_outbox`) and about reconciliations (`report_mails`).

`deliveries` is which recipients of an e-mail are done; `regular_mails` when those of each month and week were sent.
"""
