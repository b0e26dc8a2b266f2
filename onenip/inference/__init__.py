"""A finished model elsewhere: exported files, INT8, the edge runtime, tiles, and one detector per category.

`edge` and `tiles` run without torch.
"""
