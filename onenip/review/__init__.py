"""What people say about images: the queue of those to look at, and what was decided by whom.

- `queue`: images to review, with every opinion about them
- `items`: what is in it
- `marks`: score maps and masks
"""
