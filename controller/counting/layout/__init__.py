"""How the totals of one partition lie in its Redis hash: fields, and their limit per save.

Belongs here: which field holds what, what of it is written again, and what is deleted. Does not
belong here: what the numbers mean and how they come about (`controller/counting/folding/`).
"""
