"""`lipsum-tune doctor`: gather facts on every node of a cluster, and check them.

`node_facts` runs on the nodes, `checks` is the table of checks, `examine` gathers and shows.
"""
