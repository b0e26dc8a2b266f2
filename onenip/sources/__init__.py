"""Image sources: folders, archives, HTTP, S3, public data sets; the only package that uses boto3.

A module imports what it needs alone: a server that keeps answers needs no package for downloads.
"""
