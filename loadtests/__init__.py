"""The benchmark harness: Locust users, scenarios, measures and reports.

Knows the service by its HTTP contract alone and imports nothing of it.
"""
