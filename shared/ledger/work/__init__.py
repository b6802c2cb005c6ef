"""What has to be done: `due_work` publishes each piece again until it is done; `background` has what can wait.

`locks` and `deduplication` keep two processes from doing the same.
"""
