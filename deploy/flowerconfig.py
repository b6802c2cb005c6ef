"""Flower's settings; secrets and addresses come by FLOWER_* variables or options.

Flower shows project names and message SIDs, never a phone number: tasks carry nothing else.
"""

# Look, do not touch: no revoking, no pool sizes, no shutdown from a web page.
read_only = True
tasks_columns = "name,uuid,state,args,result,received,started,runtime,worker"
max_tasks = 10_000
natural_time = False
