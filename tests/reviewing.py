"""A process that reviews, as a user would start one."""

REVIEW = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from clearmargin.tracking.review import review
review(port=0, browser=False)
print("left", flush=True)
"""
