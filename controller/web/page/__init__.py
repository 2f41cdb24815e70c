"""The operator's page: what people see of rollouts in a browser. It reads, and changes nothing.

Server-made HTML that works without script. With script one stream per page keeps it current.
"""
