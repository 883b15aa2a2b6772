"""Whether a cluster is ready for a search: what is looked at, what is made of it, how it is told.

Facts are gathered (`node_facts` on each node, `probes` and `services` from here) and judged by
pure functions (`nodes`, `network`, `storage`), whose findings `report` shows.
"""
