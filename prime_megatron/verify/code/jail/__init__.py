"""The jail: a worker that holds the tests, a warm zygote that forks one confined child a test, and the child.

Imports nothing of ours beside itself and only the standard library, so that its processes start without torch.
"""
