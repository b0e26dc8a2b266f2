"""New normal images: from the inbox into the data set, each exactly once.

- `journal`: what is known of every arrival; survives a kill at any moment
- `fingerprint`: images that are in the data already, also re-encoded
- `inspection`: whether one image is taken, held, set aside as bad or as a duplicate
- `ingest`: the steps, each of which may be repeated
- `waiting`: whether enough has arrived to train
"""
