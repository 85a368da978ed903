"""streams"""

PLACE = "distilllens_place"
