"""One process that answers for all categories, each by its champion.

- `champions`: which detector answers for which category, followed in the registry
- `queue`: requests judged one after another, never more waiting than can be answered
- `web`: the HTTP interface
"""
